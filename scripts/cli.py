"""The command ``guidestack``. Each subcommand is a file of its own, imported when it is called."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

COMMANDS = (
    "generate",
    "play",
    "evaluate",
    "report",
    "edit",
    "tune",
    "world",
    "likelihood",
    "rules",
    "metrics",
    "explain",
    "doctor",
    "bench",
    "fit-linear-ag",
)


def summary(name: str) -> str:
    """The first line of a command's docstring, read from its file: importing it may import torch."""
    file = Path(__file__).with_name(name.replace("-", "_"))
    tree = ast.parse((file / "cli.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8"))
    functions = (one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == "command")
    return (ast.get_docstring(next(functions)) or "").partition("\n")[0]


class Lazy(click.Group):
    """A group whose commands cost nothing until they are called: ``--help`` does not import torch."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments, which are text: what is not UTF-8 is refused here for all commands."""
        for place, one in enumerate(args, 1):
            try:
                one.encode()
            except UnicodeEncodeError:
                ctx.fail(f"argument {place} is not UTF-8 text: {one!a}")
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name.replace('-', '_')}", __package__)
        return module.command  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(name)) for name in COMMANDS])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that a word may become, and the options of the group, without importing a command."""
        names = [CompletionItem(name, help=summary(name)) for name in COMMANDS if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, Any]:
        """The command that `args` begin with; an unknown one is refused with the nearest name."""
        from ..guidance.errors import nearest

        if args and args[0] not in COMMANDS:
            ctx.fail(f"no such command {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="guidestack")
def group() -> None:
    """Guided sampling for diffusion models."""


def main() -> None:
    """Run the command line: every expected error is one line and exit status 2, Ctrl-C is 130."""
    # The OpenMP library reads it once, when torch is imported. Without it a thread that is done waits for the others by
    # spinning: on a machine that is busy otherwise it takes the core from the thread that it waits for, at every one of
    # the hundreds of operations of a step, and two threads are ten times slower than one (docs/devices.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from ..guidance.errors import GuidestackError

    try:
        status = group.main(prog_name="guidestack", standalone_mode=False)
        if isinstance(status, int) and status:  # the argument of ctx.exit(status)
            sys.exit(status)
    except click.ClickException as error:
        _fail(error.format_message())
    except GuidestackError as error:
        _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        print("guidestack: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone: `guidestack rules | head`
        sys.stderr.close()
        sys.exit(0)


def _fail(message: str) -> None:
    from ..guidance.errors import cut

    print(f"guidestack: {cut(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)
