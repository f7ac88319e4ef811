"""Names for objectives: which function of clean samples the text of one means."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import InputError, RuleError, nearest, shown
from ..objective import NAME, SPACES, Decode, Encode, Objective, Objectives, check_text, name_of
from .text import parse_call

KindT = TypeVar("KindT", bound=type[Objective])
_KINDS: dict[str, type[Objective]] = {}


def register_objective(name: str) -> Callable[[KindT], KindT]:
    """Give a class of objectives a name, by which rules know it: ``tfg('blue', rho=1)``.

    Args:
        name: an identifier. The class is a frozen dataclass of plain numbers and texts, its arguments in text:
            ``tfg("color('blue')", rho=1)``.

    Raises:
        RuleError: the name is taken or is no identifier.
    """

    def decorate(kind: KindT) -> KindT:
        if not name.isidentifier():
            raise RuleError(f"an objective's name is an identifier; got {name!r}")
        if name in _KINDS:
            raise RuleError(f"the objective name {name!r} is taken by {_KINDS[name].__name__}; choose another name")
        _KINDS[name] = kind
        return kind

    return decorate


def kinds() -> Mapping[str, type[Objective]]:
    """The registered classes of objectives by name."""
    importlib.import_module("..objectives", __package__)  # they import this file to register themselves
    return dict(sorted(_KINDS.items()))


def objectives(
    by_name: Mapping[str, Any] | None = None,
    decode: Decode | None = None,
    rows: int = 0,
    size: tuple[int, int] | None = None,
    encode: Encode | None = None,
) -> Objectives:
    """The objectives of a run.

    Args:
        by_name: those that the user gave: a function or an `Objective` for a name of his own, or for the name of a
            registered one what it takes.
        decode: as in `Objectives`.
        rows: as in `Objectives`.
        size: as in `Objectives`.
        encode: as in `Objectives`.

    Raises:
        InputError: `by_name` is no mapping of names.
    """
    return Objectives(functools.partial(objective, by_name=checked(by_name)), decode, rows, size, encode)


def checked(by_name: object) -> Mapping[str, Any]:
    """Check the argument ``objectives=`` and return it as a mapping, {} for None.

    Raises:
        InputError: it is no mapping of names to objectives.
    """
    if by_name is None:
        return {}
    if not isinstance(by_name, Mapping):
        raise InputError(f"objectives are given by name, objectives={{'mine': function}}; got {shown(by_name)}")
    for name in by_name:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(f"objectives: a name is a word; got {shown(name)}")
    return by_name


def objective(text: str, by_name: Mapping[str, Any]) -> Any:
    """The function that the text of an objective means.

    Args:
        text: of the objective.
        by_name: as in `objectives`.

    Raises:
        InputError: there is none of that name, or it lacks what it takes.
        StackSyntaxError, RuleError: its arguments are wrong.
    """
    name, known = name_of(check_text(text)), kinds()
    value = by_name.get(name)
    if callable(value):
        if "(" in text:
            raise InputError(
                f"the objective {text!r}: {name!r} was given as an object, which has its arguments already"
            )
        space = getattr(value, "space", "pixels")
        if space not in SPACES:
            raise InputError(f"the objective {name!r} has space {shown(space)}{nearest(str(space), SPACES)}")
        return value
    if name not in known:
        got = f", and it was given {shown(value)}" if name in by_name else ""
        raise InputError(
            f"there is no objective {name!r}{nearest(name, {*by_name, *known} - {name})} (a function of your own, "
            f"log f(x0) -> (B,), is given as objectives={{{name!r}: function}}{got})"
        )
    made = parse_call(text, "objective", known)
    if name in by_name:
        return made.given(value)
    if made.takes:
        raise InputError(
            f"the objective {name!r} takes {made.takes}: --objective {name}=FILE, in Python "
            f"objectives={{{name!r}: PICTURE}}"
        )
    return made
