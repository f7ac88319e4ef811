"""``guidestack play``."""

from __future__ import annotations

from typing import Any

import click

from ..options import (
    device_option,
    needs,
    network_option,
    offload_option,
    own_dtype_option,
    rules_option,
    threads_option,
)
from .addresses import check_port


@click.command()
@click.option("--model", metavar="PATH_OR_ID", help="Model folder or hub id.  [default: the bundled emoji model]")
@network_option
@own_dtype_option
@device_option
@offload_option
@threads_option
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True, help="Port of the page.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; another than this computer's own lets others use the page.",
)
@click.option("--browser/--no-browser", default=True, help="Open the page in the browser.  [default: browser]")
@rules_option
def command(**options: Any) -> None:
    """Open a page in the browser to compare stacks: their images side by side, from the same noise.

    The page is served to this computer only, and loads nothing from elsewhere. It shows what a stack will cost before
    it runs, the effective scale of every step, and grids over one or two parameters. Each image is a file that
    `guidestack generate --like` makes again. Ctrl-C ends it.
    """
    with needs("play", "play"):
        import nicegui as nicegui

        from .serving import serve
    check_port(options["host"], options["port"])
    serve(**options)
