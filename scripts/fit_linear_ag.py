"""``guidestack fit-linear-ag``."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from ..guidance.bounds import MAX_IMAGES, MOST_TOGETHER
from ..guidance.errors import GuidestackError, InputError
from ..guidance.notation import presets
from ..guidance.plan import plan
from ..guidance.reading import exists
from ..guidance.rule import Rule, Stack
from ..guidance.rules.linear_ag import fit as linear
from ..guidance.rules.linear_ag.fit import Fit
from ..guidance.rules.linear_ag.rule import (
    CONDITIONAL,
    ESTIMATED,
    GUIDED,
    PAPER,
    LinearAG,
    Recorded,
    Recording,
    letters,
)
from ..guidance.words import counted
from ..pipelines import GuidedPipeline, guide
from ..pipelines.models.files import check_writable
from ..pipelines.models.generator import Generator
from ..pipelines.models.loading import chosen_sampler
from ..pipelines.models.recipe import check_text
from ..pipelines.session import model_identity
from ..samplers import grid
from ..samplers.noise import generators
from .generating import read_prompts
from .options import device_option, dtype_option, notices, sampler_option, threads_option, without_list


@click.command()
@click.option("--prompts", required=True, metavar="FILE", help="Prompts, one a line; - for standard input.")
@click.option("--model", metavar="PATH_OR_ID", help="Model folder or hub id.  [default: the bundled emoji model]")
@click.option(
    "--guidance", default="cfg(4)", show_default=True, metavar="STACK", help="Stack that linear_ag will stand around."
)
@sampler_option
@click.option("--steps", type=click.IntRange(1, linear.STEPS), default=20, show_default=True)
@click.option(
    "--trajectories", type=click.IntRange(1, MAX_IMAGES), default=200, show_default=True, help="Runs to fit on."
)
@click.option(
    "--batch",
    type=click.IntRange(1, MOST_TOGETHER),
    default=8,
    show_default=True,
    help="Runs that are made at once.",
)
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Seed of the first run.")
@dtype_option
@device_option
@threads_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, ending in .safetensors.")
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
def command(**options: Any) -> None:
    """Fit the coefficients of linear_ag(STACK, ...) on runs of a model.

    Run i has prompt i, counted round and round, and the seed --seed plus i. The coefficients are for this model, stack,
    sampler and number of steps, and for runs without a negative prompt. Finished runs are kept beside --out: the same
    command continues where it was stopped.
    """
    with notices():
        click.echo(_fit(options))


def _fit(options: dict[str, Any]) -> str:
    out: Path = options["out"]
    if out.suffix != linear.SUFFIX:
        raise InputError(f"--out ends in {linear.SUFFIX}; got {str(out)!r}")
    if exists(out):
        raise InputError(f"{out} is there already; choose another --out or remove it")
    check_writable(out.parent, out.name)
    prompts = read_prompts(options["prompts"])
    for prompt in prompts:
        check_text(prompt, "a prompt")
    sampler = without_list(chosen_sampler(options["sampler"], options["model"]))
    recorded = Recorded(presets.read(options["guidance"]))  # errors of the stack come before the model is loaded
    how = {name: options[name] for name in ("model", "dtype", "device", "allow_pickle")}
    generator = Generator(**how, advice="try a smaller --batch")
    generator.use(sampler)
    guided = guide(generator.pipe, recorded)
    text = "\n".join(prompts).encode()
    made = {
        "prompts": f"{len(prompts)}:{hashlib.blake2b(text, digest_size=8).hexdigest()}",
        "seed": str(options["seed"]),
        "sampler": sampler,
        "dtype": options["dtype"],
    }
    valid = {"model": model_identity(generator.pipe, guided.family)}
    part = out.with_name(f"{out.name}.part")
    fit = Fit.empty(str(recorded), options["steps"], valid, made)
    if part.exists():
        found = linear.read(part)
        _same(found, fit, part)
        fit = found
    fit = _runs(generator, guided, fit, prompts, part, options)
    _write(fit, out)
    part.unlink(missing_ok=True)
    return report(fit, recorded.rule, out, guided)


def _same(found: Fit, wanted: Fit, path: Path) -> None:
    """Check that `found` was made as `wanted` is to be, as far as that is known.

    Raises:
        InputError: it was made otherwise.
    """

    def settings(fit: Fit) -> dict[str, str]:
        return {"guidance": fit.rule, "steps": str(fit.steps), **fit.valid, **fit.made}

    there, here = settings(found), settings(wanted)
    for name, value in here.items():
        if there.get(name) != value:
            raise InputError(
                f"{path} was made with {name} {there.get(name)!r}, this is {value!r}; choose another --out or remove it"
            )


def _runs(
    generator: Generator, guided: GuidedPipeline, fit: Fit, prompts: Sequence[str], part: Path, options: dict[str, Any]
) -> Fit:
    """The fit with all runs that it lacks; what is finished is kept in `part`.

    Raises:
        GuidestackError: as the pipeline; KeyboardInterrupt: Ctrl-C. Either after saying what is missing.
    """
    wanted = options["trajectories"]
    if fit.trajectories > wanted:
        raise InputError(
            f"{part} has {counted(fit.trajectories, 'run')} already, more than --trajectories {wanted}; remove it"
        )
    bar = tqdm(total=wanted, initial=fit.trajectories, unit="run", dynamic_ncols=True)
    try:
        for group in _groups(range(fit.trajectories, wanted), options["batch"]):
            seeds = [options["seed"] + index for index in group]
            texts = [prompts[index % len(prompts)] for index in group]
            with generator.running(seeds):
                c, u = _histories(guided, texts, seeds, fit.steps)
            known = dataclasses.replace(fit, valid=_identity(guided))
            if fit.trajectories:
                _same(fit, known, part)
            fit = known.with_runs(c, u)
            _write(fit, part)
            bar.update(len(group))
    except (KeyboardInterrupt, GuidestackError):
        bar.close()
        done = fit.trajectories
        runs = counted(wanted, "run")
        click.echo(f"{done} of {runs} done, {wanted - done} missing; run it again to continue", err=True)
        raise
    bar.close()
    return fit


def _groups(indices: range, batch: int) -> Iterator[range]:
    for start in range(0, len(indices), batch):
        yield indices[start : start + batch]


def _histories(
    guided: GuidedPipeline, prompts: list[str], seeds: list[int], steps: int
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """The noise predictions of one guided call, for the prompts and for the contrast."""
    guided(prompts, num_inference_steps=steps, generator=generators(seeds), output_type="latent")
    assert guided.run is not None  # the call ended
    (state,) = guided.run.state
    assert isinstance(state, Recording)
    return state.c, tuple(value for value in state.u if value is not None)


def _identity(guided: GuidedPipeline) -> dict[str, str]:
    """What the last call was a run of."""
    assert guided.run is not None  # the call ended
    known = guided.run.run.identity or {}
    return {name: value for name, value in known.items() if value is not None}


def _known(steps: int) -> list[bool]:
    """The steps whose contrast is known under the paper's policy."""
    return [letter == GUIDED for letter in letters(PAPER, steps)]


def _write(fit: Fit, path: Path) -> None:
    linear.write(fit, path, _known(fit.steps))


def report(fit: Fit, rule: Rule, path: Path, guided: GuidedPipeline) -> str:
    """A table of the residuals, and what the paper's policy saves."""
    policy = letters(PAPER, fit.steps)
    words = {GUIDED: "guided", ESTIMATED: "estimated", CONDITIONAL: "conditional"}
    lines = [
        f"{path}: {counted(fit.trajectories, 'run')} of {counted(fit.steps, 'step')}, {fit.elements} elements each",
        "",
        "error of an estimate, as a share of the contrast u, and of c - u, by which rules guide:",
        f"{'step':>6}  {'of u':>8}  {'of c - u':>8}  under the paper's policy",
    ]
    for index, (of_u, of_both) in enumerate(linear.residuals(fit.triangle, _known(fit.steps))):
        lines.append(f"{index:>6}  {of_u:>8.2%}  {of_both:>8.2%}  {words[policy[index]]}")
    if guided.run is not None:  # else all runs were there already, and the levels were not asked for
        schedule = grid(guided.pipe.scheduler).points
        wrapped = LinearAG(rule, str(path))
        costs = [plan(Stack(one), schedule).evaluations for one in (wrapped, rule)]
        lines += ["", f"{wrapped}: {costs[0]} evaluations a sample instead of {costs[1]}"]
    return "\n".join(lines)
