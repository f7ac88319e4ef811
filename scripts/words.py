"""Numbers with their nouns."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """``"1 image"``, ``"2 images"``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def were(number: int) -> str:
    """``"1 was"``, ``"2 were"``."""
    return f"{number} {'was' if number == 1 else 'were'}"
