"""The conditions of a model by name: their order in a batch, their aliases, and how many each sample has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..guidance.errors import InputError
from ..guidance.rules.icg import SOURCES


@dataclass(frozen=True)
class Conditions:
    """The conditions of a run by name, checked, in the order in which they are evaluated.

    Attributes:
        rows: the conditions. In the order of the field, [unconditional, conditional]: the last bit of a matrix product
            can depend on the order of the rows.
        aliases: names that stand for other conditions.
    """

    rows: Mapping[str, Any]
    aliases: Mapping[str, str]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The conditions that a user gives, by their names as in `sample`.

        Raises:
            InputError: no ``"positive"`` condition.
        """
        if "positive" not in given:
            raise InputError(f"conditions need 'positive'; got {sorted(given)}")
        aliases = {}
        if "negative" not in given:
            aliases["negative"] = "negative:0" if "negative:0" in given else "null"
        elif "negative:0" not in given:
            aliases["negative:0"] = "negative"
        if "independent" in given:
            aliases |= {f"independent:{source}": "independent" for source in SOURCES}
        return cls(dict(sorted(given.items(), key=lambda item: item[0] == "positive")), aliases)

    @property
    def negative(self) -> bool:
        """Whether there is a negative condition."""
        return not {"negative", "negative:0"}.isdisjoint(self.rows)

    def count(self, kind: str, batch: int, given: Sequence[int] | None = None) -> tuple[int, ...]:
        """How many numbered conditions of a kind each sample has.

        Args:
            kind: ``"negative"`` or ``"positive"``.
            batch: number of samples.
            given: the user's number for each sample; None for all that there are.

        Raises:
            InputError: `given` has another length, or a number larger than the number of conditions.
        """
        here = sum(name.startswith(f"{kind}:") for name in self.rows)
        here = max(here, kind == "negative" and "negative" in self.rows)
        if given is None:
            return (here,) * batch
        if len(given) != batch or max(given) > here or min(given) < 0:
            raise InputError(
                f"expected the number of {kind} conditions of {batch} samples, 0 to {here} each; got {given}"
            )
        return tuple(given)
