"""Files with rules of a user's own, for tests of the doors that they come in by."""

from __future__ import annotations

from pathlib import Path

HALVED = '''"""A rule of a user's own."""

from __future__ import annotations

from dataclasses import dataclass

from guidestack.guidance import NEGATIVE, POSITIVE, Rule, number, register


@register("halved")
@dataclass(frozen=True)
class Halved(Rule):
    """Half of the way of classifier-free guidance."""

    scale: float = 3.0

    def __post_init__(self):
        number(self, "scale")

    def asks(self):
        return frozenset({POSITIVE, NEGATIVE})

    def update(self, estimate, predictions, step, state):
        c, u = predictions[POSITIVE].native, predictions[NEGATIVE].native
        return estimate.replace("any", estimate.read("any") + 0.5 * (self.scale - 1) * (c - u)), state
'''

OTHER = HALVED.replace("0.5", "0.25")  # the same name, another rule


def written(path: Path, text: str = HALVED) -> Path:
    """The path of a file that holds a rule."""
    path.write_text(text)
    return path
