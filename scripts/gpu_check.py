"""Does everything hold on this accelerator? ``make gpu-check``, or ``python -m guidestack.scripts.gpu_check``.

On the bundled model and on a random network of Stable Diffusion XL's shape, in float16 and bfloat16: parity with the
stock pipeline, every rule against float32, waits for the device, seeds, and what guidance costs. It ends in a table and
a JSON file, which are what an issue about an accelerator should have. docs/devices.md says when each check holds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import Tensor

from ..guidance.errors import GuidestackError, GuidestackWarning, NonFiniteError, reason
from ..guidance.files import write_whole
from ..guidance.notation import registry
from ..guidance.notation.text import parse
from ..guidance.rule import models_of
from ..guidance.words import counted
from ..pipelines import guide
from ..pipelines.models.loading import chosen_device
from ..samplers.moving import given_room
from .bench import accelerator, cli, models
from .bench.pipelines import SCALE, SIDES, Bench
from .bench.timing import interleaved
from .options import notices

PROMPTS = ("cat face", "hamburger", "rocket", "rose")
NEGATIVE = "dog face"
FACTOR, ROUNDINGS = 3, 8
"""What may lie between two computations of the same: so many times what lies between two of the stock pipeline's own
classifier-free guidance, and at least so many roundings of the type, of the largest number."""
MAY_WAIT = {
    "adaptive": "once a step, to know who has stopped; with lag=1 it does not",
    "icg": "where its random texts are encoded, for several steps at once",
}
"""Rules that make the host wait for the device, and when."""
BUNDLED, SHAPED = models.BUNDLED, "xl-shaped"
COSTS = {BUNDLED: ("unguided", "CFG", "Rescale", "APG", "CFG++"), SHAPED: ("CFG", "APG")}
"""Sides of the bench whose time and memory are measured."""

Outcome = Literal["pass", "FAIL", "figure", "not made"]


@dataclass(frozen=True)
class Row:
    """One line of the table that the check prints.

    Args:
        model: what was run.
        dtype: type of its weights.
        check: the question.
        what: the rule, or the number of images.
        outcome: whether it holds; "figure" where there is nothing to hold, "not made" where it was not asked.
        text: the answer, or why it was not asked.
        numbers: behind the answer.
    """

    model: str
    dtype: str
    check: str
    what: str
    outcome: Outcome
    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """The line as the terminal shows it."""
        name = f"{self.model} {self.dtype}"
        return f"{self.outcome:<8}  {name:<22}  {self.check:<6}  {self.what:<38}  {self.text}"


@dataclass(frozen=True)
class Size:
    """How large the runs are: networks, types of weights, batches and steps.

    Args:
        xl: the network of Stable Diffusion XL's shape.
        dtypes: types of the weights.
        steps: of a run whose numbers are looked at.
        batch: images of it.
        latents: side of its latents, on the network of Stable Diffusion XL's shape.
        batches: images of the runs that are timed.
        timed_steps: their steps on the bundled model, and on the other.
        timed_latents: side of their latents on the other.
        rounds: times that each is timed.
    """

    xl: models.Xl = field(default_factory=models.Xl)
    dtypes: tuple[str, ...] = ("float16", "bfloat16")
    steps: int = 4
    batch: int = 3
    latents: int = 32
    batches: tuple[int, ...] = (1, 4, 16)
    timed_steps: tuple[int, int] = (20, 3)
    timed_latents: int = 64
    rounds: int = 3


COMPARED = 0.7
"""Share of the time after which what is compared leaves the rest to what is timed."""
SMALLER = models.Xl(width=128, layers=(1, 2, 4))
"""Where the whole network does not fit."""
NEEDED = 18 * 2**30
"""Bytes that it takes: its weights in float32, and what runs need."""
QUICK = Size(models.Xl(64, (1, 1, 1), (64, 128)), ("bfloat16",), 2, 2, 8, (1, 2), (2, 2), 8, 1)
"""A minute on a CPU, whose float16 is too slow for that."""


class Subject:
    """A pipeline with the same prompts, negatives and seeds for everybody.

    Args:
        name: of the model.
        pipe: the pipeline.
        dtype: type of its weights.
        more: further arguments of every call.
    """

    def __init__(self, name: str, pipe: Any, dtype: str, more: Mapping[str, Any]) -> None:
        self.name, self.pipe, self.dtype, self.more = name, pipe, dtype, more

    def _arguments(self, samples: Sequence[int], steps: int) -> dict[str, Any]:
        return {
            "prompt": [PROMPTS[sample % len(PROMPTS)] for sample in samples],
            "negative_prompt": [NEGATIVE] * len(samples),
            "generator": [torch.Generator().manual_seed(sample) for sample in samples],
            "num_inference_steps": steps,
            "output_type": "latent",
            **self.more,
        }

    def stock(self, samples: Sequence[int], steps: int) -> Tensor:
        """The final latents of some samples, by the pipeline's own classifier-free guidance."""
        return self.pipe(guidance_scale=SCALE, **self._arguments(samples, steps)).images  # type: ignore[no-any-return]

    def guided(self, stack: str, samples: Sequence[int], steps: int) -> Tensor:
        """The final latents of some samples under a stack.

        Raises:
            GuidestackError: this pipeline cannot run it.
        """
        with warnings.catch_warnings():
            # A random network may give a rule nothing to do. Torch's warnings stay: `waits` counts them.
            warnings.simplefilter("ignore", GuidestackWarning)
            weak = dict.fromkeys(models_of(parse(stack)), self.pipe)  # a network as any other
            with given_room(self.pipe, parse(stack)):
                guided = guide(self.pipe, stack, networks=weak)
                return guided(**self._arguments(samples, steps)).images  # type: ignore[no-any-return]

    def row(self, check: str, what: str, outcome: Outcome, text: str, **numbers: float) -> Row:
        """A line of the table about this pipeline."""
        return Row(self.name, self.dtype, check, what, outcome, text, numbers)


def subject(name: str, dtype: str, device: torch.device, size: Size, timed: bool = False) -> Subject:
    """One of the two models that are checked, with weights of a type.

    Args:
        name: of the model.
        dtype: of its weights.
        device: where to put it.
        size: of the runs.
        timed: whether its runs will be timed.
    """
    accelerator.release(device)
    kind: torch.dtype = getattr(torch, dtype)
    if name == BUNDLED:
        return Subject(name, models.bundled().to(device, kind), dtype, {})
    pipe = models.xl_shaped(device, kind, size.xl)
    side = pipe.vae_scale_factor * (size.timed_latents if timed else size.latents)
    return Subject(name, pipe, dtype, {"height": side, "width": side, "output_type": "latent"})


def away(one: Tensor, other: Tensor) -> float:
    """How far two samples are apart at most, as a share of the largest number of the second."""
    one, other = one.double().cpu(), other.double().cpu()
    return float((one - other).abs().max() / other.abs().max())


def limit(stock: float, dtype: str) -> float:
    """The largest difference that may be between two computations of the same, given that of two stock runs."""
    return max(FACTOR * stock, ROUNDINGS * torch.finfo(getattr(torch, dtype)).eps)


def examples() -> list[str]:
    """The examples of the rules of the registry; a fitted rule needs the model that it was fitted for."""
    return [text for entry in registry.rules() if not entry.rule.needs_identity for text in entry.examples]


def attempts(subject: Subject, check: str, asked: Iterable[str], ask: Callable[[str], Row]) -> Iterator[Row]:
    """A row for each of `asked`, also where the pipeline refuses it, memory ends, or something breaks."""
    for what in asked:
        try:
            yield ask(what)
        except Exception as error:  # whatever an accelerator raises: the other checks still tell something
            yield subject.row(check, what, *_instead(error))


def whole(model: str, dtype: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of several checks, and one more that says what ended them, where something did."""
    try:
        yield from rows
    except Exception as error:
        yield Row(model, dtype, "all", "the rest", *_instead(error))


def _instead(error: Exception) -> tuple[Outcome, str]:
    """What to write in the place of an answer."""
    if isinstance(error, torch.OutOfMemoryError):
        return "not made", "out of memory"
    if isinstance(error, GuidestackError) and not isinstance(error, NonFiniteError):
        return "not made", reason(error)
    return "FAIL", f"{type(error).__name__}: {reason(error)}"


def parity(subject: Subject, size: Size) -> Iterator[Row]:
    """Is the pipeline's own guidance the same to the bit through guide()?"""
    counts = {counted(count, "image"): count for count in sorted({1, size.batch})}

    def ask(what: str) -> Row:
        samples = range(counts[what])
        stock, guided = subject.stock(samples, size.steps), subject.guided(f"cfg({SCALE:g})", samples, size.steps)
        same = torch.equal(stock, guided)
        if same and torch.isfinite(stock).all():
            return subject.row("parity", what, "pass", "cfg equals stock to the bit")
        apart = f"cfg and stock are {away(guided, stock):.2g} of the largest number apart"
        return subject.row("parity", what, "FAIL", "the stock pipeline's are not finite" if same else apart)

    yield from attempts(subject, "parity", counts, ask)


def references(subject: Subject, size: Size) -> dict[str, Tensor]:
    """The samples of the stock pipeline, "", and under each rule, by a network in float32."""
    found = {}
    for text in ("", *examples()):
        try:
            run = (
                subject.guided(text, range(size.batch), size.steps)
                if text
                else subject.stock(range(size.batch), size.steps)
            )
        except GuidestackError:
            continue  # the check says why
        found[text] = run.cpu()
    return found


def rules(subject: Subject, size: Size, wanted: Mapping[str, Tensor]) -> Iterator[Row]:
    """Is every rule finite, and as near to its float32 run as the stock pipeline's own guidance is to its?

    Args:
        subject: the pipeline.
        size: of the runs.
        wanted: of `references`.
    """
    samples = range(size.batch)
    stock = away(subject.stock(samples, size.steps), wanted[""])
    most = limit(stock, subject.dtype)

    def ask(text: str) -> Row:
        found = subject.guided(text, samples, size.steps)
        if not torch.isfinite(found).all():
            return subject.row("rules", text, "FAIL", "not finite")
        apart = away(found, wanted[text]) if text in wanted else float("nan")
        outcome: Outcome = "pass" if apart <= most else "FAIL"
        told = f"{apart:.2g} from float32, at most {most:.2g}; stock {stock:.2g}"
        return subject.row("rules", text, outcome, told, away=apart, limit=most, stock=stock)

    yield from attempts(subject, "rules", examples(), ask)
    for entry in registry.rules():
        if entry.rule.needs_identity:
            yield subject.row("rules", entry.name, "not made", "its coefficients are of one model in float32")


def waits(
    subject: Subject,
    size: Size,
    device: torch.device,
    count: Callable[[torch.device, Callable[[], Any]], int | None] = accelerator.waits,
) -> Iterator[Row]:
    """Does a step make the host wait for the device, more often than a step of the stock pipeline does?

    Runs of two lengths are compared: what happens once a run cancels.

    Args:
        subject: the pipeline.
        size: of the runs.
        device: where it is.
        count: tells how often a run waits; None where nobody can.
    """
    few, many = size.steps, 2 * size.steps

    def each(run: Callable[[int], Any]) -> float | None:
        run(few)  # what is made once is made
        counts = [count(device, lambda steps=steps: run(steps)) for steps in (few, many)]  # type: ignore[misc]
        return None if None in counts else (counts[1] - counts[0]) / few  # type: ignore[operator]

    own = each(lambda steps: subject.stock((0,), steps))
    if own is None:
        yield subject.row("waits", "all rules", "not made", f"torch does not report waits on {device.type}")
        return

    def ask(text: str) -> Row:
        more = each(lambda steps: subject.guided(text, (0,), steps)) - own  # type: ignore[operator]
        told = f"{more:g} a step beyond stock's {own:g}"
        if more <= 0:
            return subject.row("waits", text, "pass", told, waits=more, stock=own)
        excuse = next((MAY_WAIT[name] for name in names(text) if name in MAY_WAIT), "")
        outcome: Outcome = "figure" if excuse and "lag=1" not in text else "FAIL"
        return subject.row("waits", text, outcome, f"{told}; {excuse}" if excuse else told, waits=more, stock=own)

    yield from attempts(subject, "waits", (*examples(), "adaptive(cfg(3), lag=1)"), ask)


def names(text: str) -> list[str]:
    """The names of the rules of a stack."""
    known = {entry.rule: entry.name for entry in registry.rules()}
    return [known[type(part)] for part in parse(text).parts() if type(part) in known]


def seeds(subject: Subject, size: Size) -> Iterator[Row]:
    """Does an image depend on its own seed and not on its batch, but for the rounding that the stock pipeline has?"""
    samples, last = range(size.batch), size.batch - 1

    def apart(run: Callable[[Sequence[int]], Tensor]) -> tuple[float, float]:
        alone, batch = run((last,)), run(samples)
        return away(batch[last:], alone), away(batch[:1], alone)

    stock, _ = apart(lambda given: subject.stock(given, size.steps))
    most = limit(stock, subject.dtype)

    def ask(text: str) -> Row:
        own, other = apart(lambda given: subject.guided(text, given, size.steps))
        outcome: Outcome = "pass" if own <= most < other else "FAIL"
        told = f"alone {own:.2g} from itself in a batch, at most {most:.2g}; from another seed {other:.2g}"
        return subject.row("seeds", text, outcome, told, away=own, limit=most, other=other, stock=stock)

    yield from attempts(subject, "seeds", (f"cfg({SCALE:g})", "icg(3)", "tsg(3)", "perpneg(3)"), ask)


def cost(subject: Subject, size: Size, device: torch.device, go_on: Callable[[], bool]) -> Iterator[Row]:
    """Time and peak memory over the stock pipeline's, and images a second.

    Args:
        subject: the pipeline.
        size: of the runs.
        device: where it is.
        go_on: whether there is time for another number of images.
    """
    known, steps = {side.name: side for side in SIDES}, size.timed_steps[subject.name != BUNDLED]
    for batch in size.batches:
        what = counted(batch, "image")
        if not go_on():
            yield subject.row("cost", what, "not made", "no time left")
            continue

        def ask(what: str, batch: int = batch) -> Row:
            bench = Bench(subject.pipe, batch, steps, subject.more)
            runs = {name: bench.guided(known[name]) for name in COSTS[subject.name]}
            timed = interleaved(bench.stock, runs, size.rounds, accelerator.clock(device))
            own = accelerator.peak(device, bench.stock)
            told, numbers = [], {}
            for name, timing in timed.items():
                numbers[f"{name}: time"] = timing.ratio.median
                told.append(f"{name} {timing.ratio.median:.3f}")
                if own is not None and (used := accelerator.peak(device, runs[name])) is not None:
                    numbers[f"{name}: memory"] = used / own
                    told[-1] += f" (memory {used / own:.3f})"
            stock = statistics.median(one.seconds.median / one.ratio.median for one in timed.values())
            numbers |= {"stock: seconds": stock, "stock: images a second": batch / stock}
            numbers |= {f"{name}: images a second": batch / one.seconds.median for name, one in timed.items()}
            speed = f"{batch / timed['CFG'].seconds.median:.3g} images/s of {steps} steps of cfg; "
            missing = "; memory is not told here" if own is None else ""
            return subject.row("cost", what, "figure", f"{speed}time over stock: {', '.join(told)}{missing}", **numbers)

        yield from attempts(subject, "cost", [what], ask)
        accelerator.release(device)


def check(device: torch.device, size: Size, minutes: float) -> Iterator[Row]:
    """Every check on both models; what there is no time for says so.

    Args:
        device: where.
        size: how much is run.
        minutes: after which nothing more is begun.
    """
    began = time.monotonic()

    def go_on(share: float = 1.0) -> bool:
        return time.monotonic() - began < 60 * minutes * share

    def compared(name: str) -> Iterator[Row]:
        wanted = references(subject(name, "float32", device, size), size)
        for dtype in size.dtypes:
            yield from whole(name, dtype, checked(name, dtype, wanted))

    def checked(name: str, dtype: str, wanted: Mapping[str, Tensor]) -> Iterator[Row]:
        one = subject(name, dtype, device, size)
        for rows in (parity(one, size), seeds(one, size), rules(one, size, wanted), waits(one, size, device)):
            for row in rows:
                yield row
                if not go_on(COMPARED):
                    yield one.row("all", "the rest", "not made", "no time left")
                    return

    def timed(name: str, dtype: str) -> Iterator[Row]:
        yield from cost(subject(name, dtype, device, size, timed=True), size, device, go_on)

    with accelerator.exact():
        for name in COSTS:
            yield from whole(name, "float32", compared(name))
    for name in COSTS:
        for dtype in size.dtypes:
            yield from whole(name, dtype, timed(name, dtype))


def sized(device: torch.device, size: Size) -> Size:
    """The size of the runs with a network that fits into the device's memory."""
    free = accelerator.free(device)
    if device.type != "cpu" and (free is None or free < NEEDED):
        return Size(SMALLER)
    return size


def account(rows: Sequence[Row]) -> str:
    """The last line of the output: how many checks hold."""
    counts = Counter(row.outcome for row in rows)
    return ", ".join(f"{counts[name]} {name}" for name in ("pass", "FAIL", "figure", "not made"))


@click.command()
@click.option("--device", help="Check this one.  [default: the accelerator, if there is one]")
@click.option("--quick", is_flag=True, help="Small networks, few steps: a minute on a CPU, to try the check itself.")
@click.option("--minutes", type=float, default=7.0, show_default=True, help="Begin nothing more after this long.")
@click.option("--json", "to", type=click.Path(path_type=Path), default=Path("out/gpu-check.json"), show_default=True)
def command(device: str | None, quick: bool, minutes: float, to: Path) -> None:
    """Check that guidance holds on the accelerator of this machine, and measure what it costs there.

    Ends in a table and a JSON file: what an issue about an accelerator should have. The exit status is 1 when a check
    failed. Without an accelerator it says so, and checks nothing.
    """
    where = torch.device(chosen_device(device))
    if device is None and where.type == "cpu":
        click.echo(
            f"no accelerator: torch {torch.__version__} finds none on this machine, and nothing was checked "
            "(--device cpu --quick runs the same checks on the CPU)"
        )
        return
    size = QUICK if quick else sized(where, Size())
    machine = {**accelerator.describe(where), **cli.machine()}
    parameters = f"xl-shaped: a random network of Stable Diffusion XL's shape, {size.xl}"
    for line in (*(f"{name}: {value}" for name, value in machine.items()), parameters):
        click.echo(line)
    began, found = time.monotonic(), []
    with notices():
        click.echo(Row("model", "dtype", "check", "of", "outcome", "").line())  # type: ignore[arg-type]
        for row in check(where, size, minutes):
            found.append(row)
            click.echo(row.line())
    seconds = time.monotonic() - began
    to.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine, "size": str(size), "seconds": seconds, "rows": [vars(row) for row in found]}
    write_whole(to, json.dumps(told, indent=1) + "\n")
    for row in found:
        if row.outcome == "FAIL":
            click.echo(row.line())
    click.echo(f"{account(found)}; {seconds:.0f} s; please send all of this, or {to}")
    sys.exit(1 if any(row.outcome == "FAIL" for row in found) else 0)


if __name__ == "__main__":
    command()
