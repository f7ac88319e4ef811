"""The page: numbers, plots and images put into one file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.compute as pc

from ...guidance.errors import InputError
from ...guidance.words import counted, counted_are
from .. import plots
from ..analysis.measure import Cell, Cells
from ..metrics import Metric, PairMetric, SampleMetric
from ..store.folder import SWEEP, RunFolder
from ..verdicts import UNDECIDED, overall
from .found import Column, Found
from .plot import key
from .words import ComparisonRow, Kind, number, small

FOLDER = Path(__file__).parent
BUDGET = 16.0  # megabytes of images in the page
THUMBNAIL, QUALITY = 128, 80
SAMPLES = 3000  # in the page
IMAGE = re.compile(r"images/[\w./-]+\.(png|webp)", re.ASCII)
"""A path of an image in a run folder; records are read as anybody may have written them."""
UNUSED = "–"  # the value of an axis in a cell that does not use it
TRACED = 1000  # of which it has the steps as well


def script_safe(data: Any) -> str:
    """JSON that may stand in a script element, whatever is in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(found: Found, budget: float = BUDGET) -> str:
    """The HTML of a report.

    Args:
        found: what it shows.
        budget: megabytes of images in the page itself, at most.
    """
    samples, said = _samples(found, budget)
    script = (FOLDER / "page.js").read_text()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(counted=counted, number=number, key=key)
    template = environment.from_string((FOLDER / "page.html").read_text())
    told, run = found.cells.told, found.cells.run
    folder = run.location.folder
    address = str(run) if folder is None else str(folder.absolute())  # to be used from any folder
    records = sum(len(cell) for cell in found.cells.by_name.values())
    baseline = told.get("baseline")
    return template.render(
        title=Path(address.rstrip("/")).name or address,
        quoted=shlex.quote(address),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        model=told.get("name") or "unknown",
        fingerprint=told.get("model") or "",
        records=records,
        wanted=told.get("samples") or records,
        found=found,
        claimed=overall(found.claim[1]) if found.claim else None,
        baseline=found.short(baseline) if baseline and any(column.pairs for column in found.columns) else "",
        headline=_headline(found),
        conclusion=conclusion(found),
        metrics=_metrics(found),
        notes=list(dict.fromkeys([*found.notes, *_column_notes(found)])),
        sweep=run.location.read(SWEEP).decode(),
        versions=_versions(found.cells),
        said=said,
        data=script_safe(_data(found, samples, address)),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=_palette() + (FOLDER / "page.css").read_text(),
    )


def _palette() -> str:
    """The colours of series, by the theme."""
    light, dark = plots.variables(plots.LIGHT), plots.variables(plots.DARK)
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f"@media screen {{ :root[data-theme=dark] {{ {dark} }} }}\n"
    )


def _versions(cells: Cells) -> list[str]:
    """The versions that the samples were made with."""
    found: set[str] = set()
    for text in {
        text for cell in cells.by_name.values() for text in pc.unique(cell.table.column("versions")).to_pylist()
    }:
        try:
            told = json.loads(text) if text else {}
        except ValueError:
            continue
        found |= {f"{name} {version}" for name, version in told.items()} if isinstance(told, dict) else set()
    return sorted(found)


# --- tables ----------------------------------------------------------------------------------------------------------


def _metrics(found: Found) -> list[tuple[str, bool]]:
    """The metrics that there are plots of; the first one with the most plots is to be seen first."""
    counts = Counter(plot.metric for plot in found.plots)
    first = next((metric for metric, count in counts.items() if count == max(counts.values())), "")
    return [(metric, metric == first) for metric in counts]


def conclusion(found: Found) -> str:
    """What can be concluded: who is better in what, of how many images, and whether these are enough."""
    each = sorted({len(cell) for cell in found.cells.by_name.values()})
    images = counted(each[0], "image") if len(each) == 1 else f"{each[0]} to {each[-1]} images"
    of = f"{images} a cell, of {counted(found.prompts, 'prompt')}"
    if found.claim:
        rows = found.claim[1]
        open_rows = sum(row.verdict == UNDECIDED for row in rows)
        enough = f"too few for {counted(open_rows, 'row')}" if open_rows else "enough for every row"
        return f"The claim {overall(rows)}. {of}: {enough}."
    rows_of = [row for row in found.verdicts if row.kind != Kind.APART]
    few = sorted({row.metric for row in rows_of if row.kind == Kind.FEW})
    if not rows_of:
        why = "No two methods here guide equally hard" if found.apart else "There are no two methods to compare"
        return f"{why}: nothing can be concluded but by looking. {of}."
    if len(few) == len({row.metric for row in rows_of}):
        return f"Too few images to conclude anything but by looking: {of}."
    told = _better(found, rows_of)
    rest = "" if told else "At the same strength no difference was found. "
    enough = f"too few to tell anything of {_listed(few)}" if few else "enough for what the bands below say"
    return f"{told}{rest}{of}: {enough}."


def _better(found: Found, rows: Sequence[ComparisonRow]) -> str:
    """Who is better in what at the same strength; "" if nobody is."""
    neither = {column.text for column in found.columns if column.better == "none"}
    groups: dict[str, list[str]] = {}
    for row in rows:
        winner, loser = (row.one, row.other) if row.kind == Kind.ONE else (row.other, row.one)
        if row.kind in (Kind.ONE, Kind.OTHER):
            word = "higher" if row.metric in neither else "better"
            groups.setdefault(f"{winner} is {word} than {loser} in", []).append(row.metric)
        elif row.kind == Kind.BOTH:
            which = f"which of {row.one} and {row.other} is ahead depends on the strength in"
            groups.setdefault(which, []).append(row.metric)
    if not groups:
        return ""
    said = [f"{who} {_listed(metrics)}" for who, metrics in list(groups.items())[:3]]
    more = f"; {counted(len(groups) - 3, 'more finding')} below" if len(groups) > 3 else ""
    return f"At the same strength {'; '.join(said)}{more}. "


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _headline(found: Found) -> str:
    """How many comparisons find a difference, of those that there are samples enough for."""
    kinds = Counter(verdict.kind for verdict in found.verdicts)
    compared, few = kinds.total() - kinds[Kind.APART] - kinds[Kind.FEW], kinds[Kind.FEW]
    decided = kinds[Kind.ONE] + kinds[Kind.OTHER] + kinds[Kind.BOTH]
    told = [f"{decided} of {counted_are(compared, 'comparison', 'finds', 'find')} a difference beyond its band."]
    few_of = counted(few, "more comparison" if compared else "comparison")
    silent = [f"{few_of} can tell nothing: there are too few samples or prompts."]
    return " ".join(told * bool(compared) + silent * bool(few))


def _column_notes(found: Found) -> list[str]:
    """Each note once, with the cells that it is of."""
    notes: dict[tuple[str, str], list[str]] = {}
    for column in found.columns:
        for cell, one in column.numbers.items():
            if one.note:
                notes.setdefault((column.name, one.note), []).append(found.short(cell))
    every = len(found.cells.by_name)
    return [
        f"{name}: {note}" + ("" if len(cells) == every else f" ({'; '.join(cells)})")
        for (name, note), cells in notes.items()
    ]


# --- images ----------------------------------------------------------------------------------------------------------


def _data(found: Found, samples: Sequence[dict[str, Any]], address: str) -> dict[str, Any]:
    """What the page's script reads."""
    texts: dict[int, dict[str, Any]] = {}
    for sample in samples:
        texts.setdefault(sample["p"], sample.pop("prompt"))
    axes = _axes(found)
    return {
        "cells": [_cell(found, name, axes) for name in found.cells.by_name],
        "axes": [{"name": name, "values": values} for name, values in axes.items()],
        "metrics": [str(column.metric) for column in _single(found)],
        "prompts": texts,
        "samples": samples,
        "run": address,
    }


def _single(found: Found) -> list[Column]:
    """The metrics of single images."""
    return [column for column in found.columns if isinstance(column.metric, SampleMetric | PairMetric)]


def _samples(found: Found, budget: float) -> tuple[list[dict[str, Any]], list[str]]:
    """The samples of the page, and what is to be said of them."""
    cells = found.cells
    prompts = sorted({int(prompt) for cell in cells.by_name.values() for prompt in cell.prompts})
    a_prompt = sum(len(cell) for cell in cells.by_name.values()) / max(1, len(prompts))
    shown = prompts[: max(1, int(SAMPLES / max(1.0, a_prompt)))]
    said = []
    if len(shown) < len(prompts):
        said.append(
            f"This page shows the samples of the first {len(shown)} of {counted(len(prompts), 'prompt')}; all are in "
            "the records."
        )
    samples: list[dict[str, Any]] = []
    for place, cell in enumerate(cells.by_name.values()):
        values = [_values(cells, cell, column.metric) for column in _single(found)]
        count = int(np.searchsorted(cell.prompts, shown[-1], "right"))  # a cell's samples are sorted by prompt
        for row, record in enumerate(cell.table.slice(0, count).to_pylist()):
            samples.append(_sample(place, record, [value[row] for value in values]))
    said += _embedded(cells.run, samples, budget)
    if len(samples) <= TRACED:
        _traced(cells.run, samples)
    return samples, said


def _values(cells: Cells, cell: Cell, metric: Metric) -> Any:
    """A metric of each image; NaN where it has no value, and for the baseline, which would be compared with itself."""
    try:
        baseline = cells.compares(metric)
        return np.full(len(cell), math.nan) if cell is baseline else cell.values(metric, baseline)
    except InputError:
        return np.full(len(cell), math.nan)


def _sample(cell: int, record: Mapping[str, Any], values: Sequence[float]) -> dict[str, Any]:
    def short(value: Any, digits: int = 5) -> float | None:
        return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")

    labels = {
        name.removeprefix("label."): value for name, value in record.items() if name.startswith("label.") and value
    }
    prompt = {"text": record.get("prompt") or "", "labels": labels}
    return {
        "c": cell,
        "p": int(record["prompt_index"]),
        "s": record.get("seed"),
        "a": record["address"],
        "i": image if IMAGE.fullmatch(image := record.get("image") or "") else None,
        "e": record.get("evaluations"),
        "w": short(record.get("effective_scale")),
        "x": None if (across := short(record.get("across"))) is None else small(across),
        "g": record.get("guided_steps"),
        "t": short(record.get("seconds"), 3),
        "m": [short(value) for value in values],
        "prompt": prompt | {name: record[name] for name in ("negative", "extra") if record.get(name)},
    }


def _axes(found: Found) -> dict[str, list[str]]:
    """The axes along which cells differ, with their values in the sweep's order."""
    axes: dict[str, dict[str, None]] = {}
    for cell in found.cells.by_name.values():
        for name, value in _places(cell.told).items():
            axes.setdefault(name, {}).setdefault(value)
    # A cell that does not use an axis is there for all its values: that it has none is nothing to choose.
    used = {name: [value for value in values if value != UNUSED] for name, values in axes.items() if len(values) > 1}
    return {name: values for name, values in used.items() if values}


def _places(told: Mapping[str, Any]) -> dict[str, str]:
    given = {name: UNUSED if value is None else str(value) for name, value in told["axes"].items()}
    return {"stack": str(told["template"]), **given}


def _cell(found: Found, name: str, axes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    told = found.cells.by_name[name].told
    places = _places(told)
    plain = {key: told.get(key) for key in ("stack", "sampler", "steps", "size", "dtype")}
    at = {axis: places.get(axis, UNUSED) for axis in axes}
    return {"id": name, "called": found.short(name), **plain, "at": at}


def _embedded(run: RunFolder, samples: Sequence[dict[str, Any]], budget: float) -> list[str]:
    """Put images into samples, as far as the budget goes; returns what is to be said of the rest."""
    with_images = [sample for sample in samples if sample["i"]]
    if not with_images:
        return ["The images of this run are not kept (images: none)."] if samples else []
    found, missing, all_of_them = _encoded(run, with_images, budget, _whole)
    said = []
    if not all_of_them:
        found, missing, _ = _encoded(run, with_images, budget, _thumbnail)
        said.append(
            f"{len(found)} of {counted_are(len(with_images), 'image')} in this page, made smaller; all in full size "
            "are in its folder, and are shown where the page lies there."
        )
    for sample in with_images:
        if sample["a"] in found:
            sample |= {"d": found[sample["a"]]} if all_of_them else {"d": found[sample["a"]], "f": 1}
    return [*said, f"{counted_are(missing, 'image')} not in the folder."] if missing else said


def _encoded(
    run: RunFolder, samples: Sequence[dict[str, Any]], budget: float, encode: Callable[[RunFolder, str], str]
) -> tuple[dict[str, str], int, bool]:
    """Images by address until the budget is spent, how many were not there, and whether it was enough for all."""
    found: dict[str, str] = {}
    size = missing = 0
    for sample in samples:
        try:
            uri = encode(run, sample["i"])
        except (OSError, InputError):
            missing += 1
            continue
        size += len(uri)
        if size > budget * 1e6:
            return found, missing, False
        found[sample["a"]] = uri
    return found, missing, True


def _whole(run: RunFolder, path: str) -> str:
    return _uri(run.location.read(path), path.rpartition(".")[2])


def _thumbnail(run: RunFolder, path: str) -> str:
    image = run.image(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    sink = io.BytesIO()
    image.save(sink, format="WEBP", quality=QUALITY)
    return _uri(sink.getvalue(), "webp")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _traced(run: RunFolder, samples: Sequence[dict[str, Any]]) -> None:
    """The effective scale by step, where it was kept."""
    traces = run.traces([sample["a"] for sample in samples])
    for sample in samples:
        scales = traces.get(sample["a"], {}).get("effective_scale")
        if scales is not None:
            sample["n"] = [float(f"{value:.4g}") if math.isfinite(value) else None for value in scales]
