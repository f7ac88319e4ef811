"""Words that several commands share."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """``"1 image"``, ``"2 images"``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def were(number: int) -> str:
    """``"1 was"``, ``"2 were"``."""
    return f"{number} {'was' if number == 1 else 'were'}"


def counted_are(number: int, noun: str, one: str = "is", many: str = "are") -> str:
    """``"1 image is"``, ``"2 images are"``, or with another verb."""
    return f"{counted(number, noun)} {one if number == 1 else many}"


def lettered(number: int) -> str:
    """``"a"`` for 0, ``"z"`` for 25, then ``"aa"``, ``"ab"``."""
    more, last = divmod(number, 26)
    return (lettered(more - 1) if more else "") + chr(ord("a") + last)
