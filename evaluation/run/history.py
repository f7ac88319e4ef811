"""The sweep of a run folder, and what it grew from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...guidance.errors import InputError, shown
from ...guidance.objective import OBJECTIVE
from ...guidance.words import counted, counted_are
from .. import values
from ..paths import located
from ..spec.cells import Addresses, Cell, baseline_of, expand
from ..spec.prompts import written_prompt
from ..spec.sweep import BUNDLED, FIELDS, STACK, Sweep
from ..store.folder import CELLS, SWEEP, RunFolder
from .batches import Version

HISTORY = "history"
MAY_CHANGE = ("batch",)
"""The one of `FIELDS` that may be another one in a folder that has samples: it does not say what they are."""


def versions(run: RunFolder, sweep: Sweep, addresses: Addresses) -> list[Sweep]:
    """The sweeps that the samples of a folder are planned by, oldest first; `sweep` is the last.

    Where it asks for the same samples as the last one before, it takes its place, with what it says of everything else:
    metrics, baseline, claim, and what is kept.

    Raises:
        InputError: the folder holds another sweep; the message says what differs.
    """
    files = [name for name in run.location.names(HISTORY) if name.endswith(".yaml")]
    before = [run.resolved(f"{HISTORY}/{name}") for name in files]
    if not before:
        return [sweep]
    told, model = _header(run), addresses.model
    here = told.get("model")
    if here is not None and here != model:
        raise _another(run, f"the model's fingerprint is {here} there and {model} here")
    for name, there in (told.get("networks") or {}).items():
        if (other := addresses.networks.get(name, there)) != there:
            what = name if name.startswith(OBJECTIVE) else f"network {name!r}"
            raise _another(run, f"the fingerprint of the {what} is {there} there and {other} here")
    if difference := differs(before[-1], sweep, models=here is None):
        raise _another(run, difference)
    return [*(before[:-1] if _samples(before[-1]) == _samples(sweep) else before), sweep]


def remarks(run: RunFolder, sweep: Sweep, existing: int) -> list[str]:
    """What a user should know where samples of a folder were made by a sweep that keeps other things of them.

    Args:
        run: the folder, before `write`.
        sweep: the present one.
        existing: how many samples there are.
    """
    if not existing or not run.location.exists(SWEEP):
        return []
    before = run.sweep()
    kept = {"images": before.images != "none", "traces": before.traces}
    wanted = {"images": sweep.images != "none", "traces": sweep.traces}
    return [
        f"{counted_are(existing, 'sample', 'was', 'were')} made without {name}, and stay so; choose another --out to "
        "have them of all"
        if wanted[name]
        else f"{name} of {counted(existing, 'existing sample')} stay; new samples have none"
        for name in wanted
        if wanted[name] != kept[name]
    ]


def _another(run: RunFolder, difference: str) -> InputError:
    return InputError(
        f"{run} holds another sweep: {difference}; choose another --out (values may be added to axes, templates to "
        "stack, seeds, and prompts at the end; metrics, baseline and claim may change)"
    )


def _header(run: RunFolder) -> dict[str, Any]:
    try:
        return run.cells()
    except InputError:  # none yet, or damaged: it is written anew
        return {}


def differs(old: Sweep, new: Sweep, models: bool = True) -> str:
    """What keeps samples of the sweep `old` from being samples of `new`, one line; "" where nothing does.

    Args:
        old: which samples were made by.
        new: the present one.
        models: whether to compare where the models lie; not where their fingerprints are known to be the same.
    """
    plain: Sequence[tuple[str, Any, Any]] = [
        *([("model", _model(old), _model(new))] if models else []),
        *((name, _fixed(old, name), _fixed(new, name)) for name in FIELDS if name not in MAY_CHANGE),
        ("zip", old.zipped, new.zipped),
    ]
    for name, there, here in plain:
        if there != here:
            return f"{name} is {_shown(there)} there and {_shown(here)} here"
    for name, template in old.stacks.items():
        if new.stacks.get(name) != template:
            return f"stack has {template!r} there" + (f" as {name!r}" if name in new.stacks else "") + ", and not here"
    for name in {**old.axes, **new.axes}:
        if name in MAY_CHANGE:
            continue
        if name not in old.axes or name not in new.axes:
            return f"the axis {name} is {'only there' if name in old.axes else 'only here'}"
        for value in old.axes[name]:
            if value not in new.axes[name]:
                return f"the axis {name} has {_shown(value)} there, and not here"
    for place, prompt in enumerate(old.prompts):
        if place >= len(new.prompts):
            return f"it has {counted(len(old.prompts), 'prompt')} there and {len(new.prompts)} here"
        if written_prompt(prompt) != written_prompt(new.prompts[place]):
            return f"prompt {place + 1} is {prompt.text!r} there and {new.prompts[place].text!r} here"
    if lost := set(old.pairs) - set(new.pairs):
        return f"seed {min(lost)[1]} of prompt {min(lost)[0] + 1} is there, and not here"
    known = {cell.key for cell in expand(new)}
    if gone := [cell for cell in expand(old) if cell.key not in known]:
        return f"the cell {gone[0]} is there, and not here"
    return ""


def _model(sweep: Sweep) -> str:
    return located(sweep.model) if sweep.model else BUNDLED


def _fixed(sweep: Sweep, name: str) -> Any:
    return sweep.fixed.get(name, "an axis")


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and all(type(side) is int for side in value):
        return str(values.size_text(value))
    return str(value) if isinstance(value, str) else shown(value)


def _samples(sweep: Sweep) -> tuple[Any, ...]:
    """What of a sweep may grow, and decides which samples it has."""
    axes = {name: each for name, each in sweep.axes.items() if name not in MAY_CHANGE}
    return list(sweep.stacks), axes, sweep.pairs, sweep.partners


def planned(sweeps: Sequence[Sweep], cells: Sequence[Cell]) -> list[Version]:
    """The cells, prompts and pairs of each version.

    Args:
        sweeps: of `versions`.
        cells: of the last one; those of the versions before are taken from these, which may have another batch.
    """
    now = {cell.key: cell for cell in cells}
    before = [([now[cell.key] for cell in expand(sweep)], sweep.prompts, sweep.pairs) for sweep in sweeps[:-1]]
    return [*before, (cells, sweeps[-1].prompts, sweeps[-1].pairs)]


def write(run: RunFolder, sweeps: Sequence[Sweep], cells: Sequence[Cell], addresses: Addresses, name: str) -> None:
    """Write the folder's account of its sweep: ``sweep.yaml``, its history, and ``cells.json``.

    Args:
        run: the folder.
        sweeps: of `versions`; the last one is the present sweep.
        cells: of the present sweep.
        addresses: of the model.
        name: of the model.
    """
    sweep = sweeps[-1]
    have = run.location.names(HISTORY)
    for number, one in enumerate(sweeps, 1):
        file = f"{number:04}.yaml"
        if file not in have:
            run.write_bytes(f"{HISTORY}/{file}", _resolved(run, one))
    baseline = baseline_of(sweep, cells)
    told = {
        "name": name,
        "model": addresses.model,
        **({"networks": addresses.networks} if addresses.networks else {}),
        "baseline": addresses.cell(baseline) if baseline else None,
        "samples": len(cells) * len(sweep.pairs),
        "cells": described(cells, addresses),
    }
    _write_new(run, CELLS, json.dumps(told, indent=1, ensure_ascii=False).encode() + b"\n")
    _write_new(run, SWEEP, _resolved(run, sweep))


def check(sweep: Sweep, cells: Sequence[Cell], addresses: Addresses) -> None:
    """Check that a run folder can hold an account of the sweep, before there is one.

    Raises:
        InputError: it would be too long to be read again, or the claim compares cells that there are not.
    """
    written = len(sweep.as_yaml(None if sweep.prompt_lines() is None else "prompts.jsonl").encode())
    if written > values.MAX_BYTES:
        raise InputError(
            f"this sweep has {written} bytes when it is written out, and {values.MAX_BYTES} are the most; give fewer "
            "values of axes and seeds, and put negatives into the file of prompts"
        )
    if sweep.claim:
        from ..analysis.findings import cell_meant  # which reads metrics, and with them networks

        told = described(cells, addresses)
        for one in sweep.claim.expect:
            cell_meant(told, one.of)
            cell_meant(told, one.than)


def described(cells: Sequence[Cell], addresses: Addresses) -> list[Mapping[str, Any]]:
    """The cells of a sweep as ``cells.json`` has them."""
    found: list[Mapping[str, Any]] = []
    for cell in cells:
        axes = dict(cell.axes)
        template = axes.pop(STACK)
        told = {"cell": addresses.cell(cell), **cell.identity, "batch": cell.batch, "template": template, "axes": axes}
        found.append(told)
    return found


def _resolved(run: RunFolder, sweep: Sweep) -> bytes:
    """The YAML of a sweep; many prompts go into a file of their own."""
    lines = sweep.prompt_lines()
    if lines is None:
        return sweep.as_yaml().encode()
    file = f"prompts-{hashlib.blake2b(lines, digest_size=6).hexdigest()}.jsonl"
    _write_new(run, file, lines)
    return sweep.as_yaml(file).encode()


def _write_new(run: RunFolder, name: str, data: bytes) -> None:
    """Write a file unless it is as it shall be: a folder that is only looked at is not changed."""
    try:
        if run.location.read(name) == data:
            return
    except FileNotFoundError:
        pass
    run.write_bytes(name, data)
