"""Axes of ``guidestack generate``: the values of ``--axis``, and what is made for each combination of them."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ..guidance.bounds import LAST_SEED, MAX_IMAGES, MOST_STEPS
from ..guidance.errors import InputError, cut, nearest, shown
from .wanted import Wanted

FIELDS = ("sampler", "steps", "seed", "size", "strength")
"""The options that an axis may have for its name."""
DIGITS = 12  # of a number between two others


@dataclass(frozen=True)
class Axis:
    """An axis: one of `FIELDS`, or a name that stands in braces in a stack or a prompt, and its values as texts."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Axis:
        """An axis from ``"NAME=VALUES"``.

        VALUES are texts with commas between them, where one with a comma in it stands in double quotes; ``2:8``, the
        whole numbers from 2 to 8; or ``2:8:4``, as many numbers from 2 to 8, evenly.

        Raises:
            InputError: another form, no values, or one that comes twice.

        >>> Axis.read("w=2:8:4").values, Axis.read("seed=3:5").values, Axis.read("sampler=ddim, euler-a").values
        (('2', '4', '6', '8'), ('3', '4', '5'), ('ddim', 'euler-a'))
        """
        name, sign, listed = text.partition("=")
        name = name.strip()
        if not sign or not name.isidentifier():
            raise InputError(f"--axis is NAME=VALUES, such as w=2:8:4 or sampler=ddim,euler; got {shown(text)}")
        values = _range(name, listed) or _listed(listed)
        if not values or not all(values):
            raise InputError(f"--axis {name} has an empty value; give values with commas, such as {name}=1,2,3")
        if twice := [one for one, times in Counter(values).items() if times > 1]:
            raise InputError(f"--axis {name} has the value {shown(twice[0])} twice")
        return cls(name, values)


def _listed(text: str) -> tuple[str, ...]:
    rows = list(csv.reader([text], skipinitialspace=True))
    return tuple(value.strip() for value in rows[0]) if rows else ()


def _range(name: str, text: str) -> tuple[str, ...]:
    """The numbers of ``A:B`` or ``A:B:COUNT``; none where it is no such text.

    A text without a comma or a quote whose first or second part is a number is meant as a range.

    Raises:
        InputError: it is meant as one, and is none, or one of too many numbers or of no numbers.
    """
    number = r"\s*(-?[0-9]{1,15}(?:\.[0-9]{1,15})?)\s*"
    match = re.fullmatch(rf"{number}:{number}(?::\s*([0-9]{{1,9}})\s*)?", text)
    if match is None:
        parts = text.split(":")[:2]
        meant = len(parts) > 1 and not set(',"') & set(text) and any(re.fullmatch(number, one) for one in parts)
        if not meant:
            return ()
    else:
        low, high = Decimal(match[1]), Decimal(match[2])
        count = int(match[3]) if match[3] else high - low + 1
        if (1 if match[3] else 2) <= count <= MAX_IMAGES and count == int(count) and (count == 1) == (low == high):
            step = (high - low) / (int(count) - 1) if count > 1 else Decimal(0)
            return tuple(_written(low + step * place) for place in range(int(count)))
    raise InputError(
        f"--axis {name}={cut(text, 80)}: a range is A:B, whole steps from A up to B, or A:B:COUNT, that many numbers "
        "from A to B; a text with a colon stands in double quotes"
    )


def _written(number: Decimal) -> str:
    """A number as short as it can be written."""
    rounded = round(number, DIGITS)
    return str(int(rounded)) if rounded == int(rounded) else f"{rounded.normalize():f}"


def read_axes(wanted: Wanted) -> tuple[Axis, ...]:
    """The axes that are asked for.

    Raises:
        InputError: one that changes nothing, that comes twice, or that is given as an option too.
    """
    axes = tuple(Axis.read(text) for text in wanted.axis)
    names = [axis.name for axis in axes]
    texts = [*wanted.guidance, *wanted.prompts, *wanted.negative, *wanted.extra_prompt]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--axis {name} comes twice; give all its values in one")
        if name in FIELDS and name in wanted.given:
            raise InputError(f"--{name} and --axis {name} were both given; leave one of them out")
        if name not in FIELDS and not any(f"{{{name}}}" in text for text in texts):
            hint = nearest(name, FIELDS) if nearest(name, FIELDS).endswith("?") else ""
            raise InputError(
                f"no stack or prompt uses --axis {name}: write {{{name}}} where its values go, such as "
                f'--guidance "cfg({{{name}}})"; axes without braces are {", ".join(FIELDS)}{hint}'
            )
    for text in texts:
        left = set(re.findall(r"\{(\w+)\}", text)) - set(names) if text in wanted.guidance else set()
        if left:
            raise InputError(f"--guidance {shown(text)} has {{{min(left)}}}, and there is no --axis {min(left)}=VALUES")
    return axes


def combinations(wanted: Wanted, axes: Sequence[Axis]) -> list[tuple[tuple[str, ...], Wanted]]:
    """What is asked for with each combination of the values of `axes`, the last axis fastest.

    Raises:
        InputError: a value that its option does not take, or too many combinations.
    """
    count = math.prod(len(axis.values) for axis in axes)
    images = count * len(wanted.prompts) * max(1, len(wanted.guidance)) * wanted.count
    if axes and images > MAX_IMAGES:
        raise InputError(f"the axes make {images} images of this, and one run makes {MAX_IMAGES} at most")
    found = []
    for values in itertools.product(*(axis.values for axis in axes)):
        chosen = dict(zip((axis.name for axis in axes), values, strict=True))
        fields: dict[str, Any] = {name: _value(name, text) for name, text in chosen.items() if name in FIELDS}
        found.append((values, dataclasses.replace(_filled(wanted, chosen), **fields)))
    return found


def _filled(wanted: Wanted, chosen: dict[str, str]) -> Wanted:
    def filled(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            re.sub(r"\{(\w+)\}", lambda hole: chosen.get(hole[1], hole[0]), text) if "{" in text else text
            for text in texts
        )

    names = ("guidance", "prompts", "negative", "extra_prompt")
    return dataclasses.replace(wanted, **{name: filled(getattr(wanted, name)) for name in names})  # type: ignore[arg-type]


def _value(name: str, text: str) -> str | int | float:
    """The value of an option from its text in an axis.

    Raises:
        InputError: it is none.
    """
    try:
        if name == "steps" and 1 <= (steps := int(text)) <= MOST_STEPS:
            return steps
        if name == "seed" and 0 <= (seed := int(text)) <= LAST_SEED:
            return seed
        if name == "strength" and 0 < (strength := float(text)) <= 1:
            return strength
    except ValueError:
        pass
    if name in ("sampler", "size"):  # read where the option is
        return text
    bounds = {"steps": f"from 1 to {MOST_STEPS}", "seed": f"from 0 to {LAST_SEED}", "strength": "above 0, at most 1"}
    raise InputError(
        f"--axis {name}: a value is a{' whole' * (name != 'strength')} number {bounds[name]}; got {shown(text)}"
    )
