"""Which family record is likely to be nearly right for a pipeline that has none."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable

from .record import FAMILIES, Family, Pipeline

SPARE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def nearest_to(pipe: Pipeline) -> list[str]:
    """Names of pipelines with a record, the likeliest first, for one at hand."""
    return nearest_records(type(pipe).__name__, type(pipe), getattr(pipe, "__dict__", {}))


def nearest_records(name: str, cls: type | None, components: Iterable[str]) -> list[str]:
    """Names of pipelines with a record, the likeliest to be nearly right first.

    By what their code shares: the package in which diffusers keeps both, the names of all components, the arguments of
    a call, and at last the name.

    Args:
        name: of the class.
        cls: the class, if it is at hand.
        components: names of what it has.
    """
    import diffusers

    there = {one for one in components if not one.startswith("_")} | _method(cls, "__init__")
    given = _method(cls, "__call__")

    def likeness(family: Family) -> float:
        found = getattr(diffusers, family.pipeline, None)
        known = found if isinstance(found, type) else None
        parts = _method(known, "__init__") or {family.denoiser, "scheduler"}
        arguments = _method(known, "__call__") or {*({"prompt"} if family.encode else ()), *family.owned}
        alike = difflib.SequenceMatcher(None, name, family.pipeline).ratio()
        together = known is not None and _package(known) == _package(cls)
        prompts = bool(given) and (family.encode is not None) == ("prompt" in given)
        shared = _share(parts, there) + _share(arguments, given)
        return 2 * (family.denoiser in there) + together + prompts + 2 * shared + alike

    return [family.pipeline for family in sorted(FAMILIES.values(), key=likeness, reverse=True)]


def _package(cls: type | None) -> str:
    return cls.__module__.rpartition(".")[0] if cls else ""


def _method(cls: type | None, name: str) -> set[str]:
    """The arguments of a method; none of a class without one, or that cannot be imported here."""
    function = getattr(cls, name, None)
    if not inspect.isfunction(function):
        return set()
    parameters = inspect.signature(function).parameters.values()
    return {one.name for one in parameters if one.kind not in SPARE} - {"self"}


def _share(one: set[str], other: set[str]) -> float:
    """What two sets have in common, in [0, 1]."""
    return len(one & other) / max(1, len(one | other))
