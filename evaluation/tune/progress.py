"""What a tuning says while it goes on: one bar over all images, with the time that is left."""

from __future__ import annotations

import time
from typing import Any

import click
from tqdm import tqdm

from ..run.progress import Progress


class Bar(Progress):
    """A bar on the terminal for several runs one after the other."""

    def __init__(self) -> None:
        self.evaluations, self.began = 0, time.monotonic()
        self.bar: Any = None
        self.notes: set[str] = set()
        self.existing: dict[int, int] = {}

    def start(self, images: int) -> None:
        """About so many images are to come; those that are there do not count for the time that is left."""
        self.began = time.monotonic()
        self.bar = tqdm(total=images, unit="image", dynamic_ncols=True)

    def note(self, text: str) -> None:
        """Show a line once."""
        if text not in self.notes:
            self.notes.add(text)
            self.say(f"note: {text}")

    def say(self, text: str) -> None:
        """Show a line above the bar."""
        if self.bar is None:
            click.echo(text, err=True)
        else:
            self.bar.write(text, file=self.bar.fp)

    def made(self, count: int, evaluations: int) -> None:
        """Go on."""
        self.evaluations += evaluations
        if self.bar is not None:
            rate = self.evaluations / max(1e-9, time.monotonic() - self.began)
            self.bar.set_postfix_str(f"{rate:.1f} evaluations/s", refresh=False)
            self.bar.update(count)

    def stop(self, ended: bool = False) -> None:
        """Leave the bar as it is; where all has `ended`, with as many images as there were: it was about so many."""
        if self.bar is not None:
            if ended:
                self.bar.total = self.bar.n
                self.bar.refresh()
            self.bar.close()
