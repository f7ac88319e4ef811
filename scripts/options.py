"""Options that several commands share, and what a command shows of warnings."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..guidance.bounds import DTYPES, MOST_STEPS
from ..guidance.errors import GuidestackWarning, InputError, cut, shown


@contextmanager
def notices() -> Iterator[list[str]]:
    """Show guidestack's own warnings, one line each and once, and keep the libraries' off the terminal.

    Yields:
        The warnings that were shown so far.
    """
    shown: list[str] = []

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if str(message) in shown:  # "once" forgets whenever a library changes the filters
            return
        shown.append(str(message))
        click.echo(f"warning: {cut(str(message))}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("once", category=GuidestackWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield shown


@contextmanager
def needs(command: str, extra: str = "evaluation") -> Iterator[None]:
    """Import what a command needs: a package that is not installed is an error that names the extra to install.

    Raises:
        InputError: a package of others is missing.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("guidestack"):
            raise
        raise InputError(f"{command} needs {error.name}: pip install 'guidestack[{extra}]'") from error


def read_size(text: str | None) -> tuple[int, int] | None:
    """The option ``--size``: height and width in pixels, from ``"64x64"``; None for None.

    Raises:
        InputError: another form, or sides out of bounds.
    """
    from ..pipelines.models.files import size_of

    try:
        return None if text is None else size_of(text)
    except ValueError as error:
        raise InputError(f"--size {error}; got {shown(text)}") from error


sampler_option = click.option(
    "--sampler",
    help="Sampler, e.g. ddim, euler-a, dpm++2m-karras; other programs' names too, such as 'DPM++ 2M Karras'; after an "
    "@ a list of noise levels, such as euler@ays; own is the model's own scheduler.  [default: dpm++2m, or own for a "
    "model that cannot use it, such as a flow]",
)


def without_list(sampler: str) -> str:
    """A sampler's name for a command that makes the levels by itself.

    Raises:
        InputError: a list of levels stands behind it.
    """
    if "@" in sampler:
        raise InputError(
            f"this command takes the sampler's own noise levels; leave the @ and the list out of {sampler!r}"
        )
    return sampler


def _threads(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        import torch

        torch.set_num_threads(value)


def steps_option(default: int, least: int = 1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option ``--steps`` with a default."""
    return click.option(
        "--steps",
        type=click.IntRange(least, MOST_STEPS),
        default=default,
        show_default=True,
        help="Steps of the sampler.",
    )


dtype_option = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Type of the weights.",
)
own_dtype_option = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Type of the weights.  [default: float32 on a CPU; on an accelerator float16 for a model with a UNet, "
    "bfloat16 for another]",
)
device_option = click.option(
    "--device", help="cpu, cuda, cuda:1, mps, ...  [default: the accelerator if there is one, else cpu]"
)
offload_option = click.option(
    "--offload",
    is_flag=True,
    help="Keep the model in the host's memory, and each part on the device only while it runs: for a small GPU.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    callback=_threads,
    expose_value=False,
    help="Threads of the network on a CPU.  [default: torch's own, one for each core]",
)


CALLED = re.compile(r"(?P<name>\w+)\(.*?\)=(?P<value>.+)")
"""NAME(...)=VALUE: a name with the arguments that it has in a stack."""


def _by_name(expected: str, reserved: str = "") -> Callable[..., dict[str, str]]:
    """A callback that reads options of the form NAME=VALUE into a mapping.

    Args:
        expected: what is said where one has another form.
        reserved: a name that is refused like one of another form.
    """

    def read(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
        from ..guidance.errors import InputError, shown

        found: dict[str, str] = {}
        for text in given:
            name, sign, value = text.partition("=")
            if not sign or not value or not name.isidentifier() or name == reserved:
                called = CALLED.fullmatch(text)
                instead = f"; leave the brackets out: {called['name']}={called['value']}" if called else ""
                raise InputError(f"{expected}; got {shown(text)}{instead}")
            if name in found:
                raise InputError(f"{param.opts[0]} {name} comes twice")
            found[name] = value
        return found

    return read


network_option = click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME=FOLDER",
    callback=_by_name("--network is NAME=FOLDER, such as weak=checkpoints/early; 'main' is --model", "main"),
    help="A further network for rules that ask it by NAME, such as autoguidance: a folder of a network or a model, a "
    "model's hub id, lora:FILE[=SCALE] for the model's own network with that LoRA, or bundled for the weak twin of the "
    "bundled model; may be repeated.",
)


objective_option = click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="NAME=FILE",
    callback=_by_name("--objective is NAME=FILE, such as known=picture.png for tfg('known', rho=1)"),
    help="The picture (PNG) that the objective NAME of a rule takes, such as known=half.png for tfg('known', rho=0.5); "
    "may be repeated.",
)


RULES = "guidestack.rules"


def _load(ctx: click.Context, param: click.Parameter, paths: tuple[Path, ...]) -> None:
    ctx.with_resource(notices())  # what a file or an installed package warns of, while the command runs
    for path in () if ctx.resilient_parsing else paths:  # completing a word runs no file
        from ..guidance.notation.plugins import load_rules

        load_rules(path)
    ctx.meta[RULES] = paths


def rules_given() -> str:
    """Return the options ``--rules`` that the running command was given, for a command that it advises."""
    return "".join(f" --rules {path}" for path in click.get_current_context().meta.get(RULES, ()))


rules_option = click.option(
    "--rules",
    "rules_files",
    multiple=True,
    metavar="FILE.py",
    type=click.Path(path_type=Path),
    callback=_load,
    expose_value=False,
    help="Python file with rules, metrics or records of pipelines of your own, which is run; may be repeated "
    "(docs/write-a-rule.md).",
)
"""Imports rules before a command reads a stack. A file that an image, a preset or a folder names is not imported."""
