"""What several figures have: a pipeline under a sampler, numbers of a picture, and the place of numbers in a page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageChops, ImageStat

from ....guidance.errors import GuidestackError, InputError
from ....guidance.files import write_whole
from ....samplers import by_name

BEGIN, END = "<!-- numbers: {} -->\n", "<!-- /numbers -->"


class OneLine(click.Command):
    """A command whose expected errors are one line, as in ``guidestack``."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except GuidestackError as error:
            raise click.ClickException(str(error)) from error


@contextmanager
def sampled(pipe: Any, sampler: str) -> Iterator[None]:
    """While the context lasts, the pipeline has the sampler of this name."""
    own = pipe.scheduler
    try:
        pipe.scheduler = by_name(sampler, own)
        yield
    finally:
        pipe.scheduler = own


def saturation(image: Image.Image) -> float:
    """Mean saturation of the pixels in HSV, in [0, 1]."""
    return float(ImageStat.Stat(image.convert("RGB").convert("HSV")).mean[1]) / 255


def contrast(image: Image.Image) -> float:
    """RMS contrast: standard deviation of the brightness over the pixels, in [0, 0.5]; brightness is PIL's ``L``."""
    return float(ImageStat.Stat(image.convert("RGB").convert("L")).stddev[0]) / 255


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two pictures in dB, over all pixels and channels; infinite if they are the same."""
    sums = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).sum2
    error = sum(sums) / (3 * one.width * one.height * 255**2)
    return -10 * math.log10(error) if error else math.inf


def exchanged(page: str, name: str, text: str) -> str:
    """The page with the numbers called `name` exchanged: what stands between its two marks.

    Raises:
        InputError: the page has no such marks.
    """
    begin = BEGIN.format(name)
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise InputError(f"the page has no place for the numbers of {name}; add {begin.strip()} and {END} to it")
    return before + begin + text + END + after


def fill(page: Path, name: str, text: str) -> None:
    """Put the numbers called `name` into a page; do nothing where there is no such file.

    Raises:
        InputError: the page has no place for them.
    """
    if page.exists():
        whole = exchanged(page.read_text(encoding="utf-8"), name, text)
        write_whole(page, whole)
