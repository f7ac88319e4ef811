"""What a tuning says while it goes on: one bar over all images, with the time that is left."""

from __future__ import annotations

import click

from ..run import progress


class Bar(progress.Bar):
    """A bar on the terminal for several runs one after the other."""

    def __init__(self) -> None:
        super().__init__(rank=0)
        self.notes: set[str] = set()

    def start(self, images: int) -> None:
        """Show the bar: about so many images are to come. Those that exist do not count for the time that is left."""
        super().begin(images, 0)

    def begin(self, total: int, existing: int) -> None:
        """Do nothing: the bar goes on from run to run."""

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
        """Move the bar, if it is shown."""
        if self.bar is not None:
            super().made(count, evaluations)

    def end(self) -> None:
        """Do nothing: the bar goes on from run to run."""

    def stop(self, ended: bool = False) -> None:
        """Leave the bar as it is; where all has `ended`, with as many images as there were: it was about so many."""
        if self.bar is not None:
            if ended:
                self.bar.total = self.bar.n
                self.bar.refresh()
            self.bar.close()
