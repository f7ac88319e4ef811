"""What a run says while it goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from ..spec.sweep import Sweep


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        made: samples that this process made.
        existing: samples of the sweep that were there before.
        missing: samples that nobody has made.
        evaluations: network evaluations, of samples that were made again only to fill a batch as well.
        seconds: spent on making, and on waiting for the others.
        records: rows of the merged records; 0 where another process merges.
        others: samples that the other processes of the launch made; 0 where another process merges.
        others_evaluations: network evaluations that those samples cost.
        lost: samples that this process could not make, since they are NaN or Inf; they are not `missing`.
        cause: what was said of the first of them.
    """

    made: int = 0
    existing: int = 0
    missing: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    records: int = 0
    others: int = 0
    others_evaluations: int = 0
    lost: int = 0
    cause: str = ""


class Progress:
    """The events of a run, as methods that a subclass overrides; here they do nothing."""

    def begin(self, total: int, existing: int) -> None:
        """Called before the first sample is made, with the numbers of samples to make and of those that exist."""

    def note(self, text: str) -> None:
        """Called with a line that the user should read."""

    def made(self, count: int, evaluations: int) -> None:
        """Called after each batch that is written, with its samples and the network evaluations that it has cost."""

    def end(self) -> None:
        """Called after the last sample."""

    def finished(self, outcome: Outcome) -> None:
        """Called in the first process of a launch when the records are merged."""

    def measured(self, sweep: Sweep) -> None:
        """Called in the first process of a launch when the metrics of the sweep are written."""


class Bar(Progress):
    """A bar on the terminal with the time that is left; of the first process of a launch only.

    Args:
        rank: of this process.
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.evaluations, self.began = rank, 0, 0.0
        self.bar: Any = None

    def begin(self, total: int, existing: int) -> None:
        """Show the bar."""
        self.began = time.monotonic()
        self.bar = tqdm(total=total, unit="image", dynamic_ncols=True, disable=not total or self.rank > 0)

    def note(self, text: str) -> None:
        """Write the line to standard error."""
        click.echo(f"note: {text}", err=True)

    def made(self, count: int, evaluations: int) -> None:
        """Move the bar on, and show the evaluations a second."""
        self.evaluations += evaluations
        rate = self.evaluations / max(1e-9, time.monotonic() - self.began)
        self.bar.set_postfix_str(f"{rate:.1f} evaluations/s", refresh=False)
        self.bar.update(count)

    def end(self) -> None:
        """Stop the bar where it is."""
        self.bar.close()
