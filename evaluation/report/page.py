"""The page: numbers, plots and images put into one file."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.compute as pc

from ...guidance.errors import InputError
from ...guidance.words import counted, counted_are
from .. import plots
from ..analysis.findings import overall
from ..analysis.measure import Cell, Cells, Number
from ..metrics import PairMetric, SampleMetric, summary
from ..store.folder import RunFolder
from . import svg
from .gather import Column, Found, Progress, gather, versions
from .words import APART, BOTH, FEW, ONE, OTHER, number, small

FOLDER = Path(__file__).parent
REPORT, PLOTS = "report.html", "plots"
BUDGET = 16.0  # megabytes of images in the page
THUMBNAIL, QUALITY = 128, 80
SAMPLES = 3000  # in the page
IMAGE = re.compile(r"images/[\w./-]+\.(png|webp)", re.ASCII)
"""A path of an image in a run folder; records are read as anybody may have written them."""
UNUSED = "–"  # the value of an axis in a cell that does not use it
TRACED = 1000  # of which it has the steps as well


def write(
    run: RunFolder, more: Sequence[str] = (), budget: float = BUDGET, progress: Progress = lambda what: None
) -> str:
    """Write the report of a run into its folder: ``report.html``, and ``plots/``.

    Args:
        run: the folder.
        more: metrics beside those that the sweep names.
        budget: megabytes of images that may stand in the page itself. Beyond it are smaller ones, and beyond that links
            to those of the folder.
        progress: told what is done.

    Returns:
        Where the page is.

    Raises:
        InputError: there is no run, a metric cannot be had, or the page cannot be written.
    """
    found = gather(run, more, progress)
    for figure in [*found.figures, *found.differences.values()]:
        run.write_bytes(f"{PLOTS}/{figure.name}.svg", plots.alone(figure.svg).encode())
        run.write_bytes(f"{PLOTS}/{figure.name}.csv", written_csv(figure.rows))
    progress("the page")
    run.write_bytes(REPORT, page(found, budget).encode())
    return f"{run}/{REPORT}"


def no_formula(value: Any) -> Any:
    """A cell of a table; a text that a spreadsheet would compute has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def written_csv(rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows as CSV; what has no value is empty."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if isinstance(one, float) and math.isnan(one) else no_formula(one) for one in row])
    return sink.getvalue().encode()


def script_safe(data: Any) -> str:
    """JSON that may stand in a script element, whatever is in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(found: Found, budget: float = BUDGET) -> str:
    """The page's HTML."""
    data, said = _data(found, budget)
    script = (FOLDER / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((FOLDER / "page.html").read_text())
    records = sum(len(cell) for cell in found.cells.by_name.values())
    style = (FOLDER / "page.css").read_text()
    run = _whole(found.run)
    return template.render(
        title=Path(run.rstrip("/")).name or run,
        run=run,
        quoted=shlex.quote(run),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        model=found.cells.told.get("name") or "unknown",
        fingerprint=found.cells.told.get("model") or "",
        records=records,
        wanted=found.cells.told.get("samples") or records,
        cells=_cells(found),
        columns=[_heading(column) for column in found.columns],
        prompts=found.prompts,
        same=found.same,
        claim=_claim(found),
        verdicts=_by_metric(found),
        apart=_apart(found),
        plots={figure.name: figure.svg for figure in found.differences.values()},
        unplotted=sum(
            row.kind != APART and not row.plot for row in [*found.verdicts, *(row for _, row in found.by_cost)]
        ),
        baseline=_baseline(found),
        headline=_headline(found),
        counted=counted,
        by_cost=found.by_cost,
        figures=_figures(found),
        metrics=_metrics(found),
        notes=list(dict.fromkeys([*found.notes, *_column_notes(found)])),
        sweep=found.sweep,
        versions=versions(found.cells),
        said=said,
        data=script_safe(data),
        script=script,
        digest=digest,
        style=_palette() + style,
    )


def _whole(run: RunFolder) -> str:
    """The address of a run, to be used from any folder."""
    folder = run.location.folder
    return str(run) if folder is None else str(folder.absolute())


def _palette() -> str:
    """The colours of series, by the theme."""
    light, dark = plots.variables(plots.LIGHT), plots.variables(plots.DARK)
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f"@media screen {{ :root[data-theme=dark] {{ {dark} }} }}\n"
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def _metrics(found: Found) -> list[tuple[str, bool]]:
    """The metrics that there are plots of; the first one with the most plots is to be seen first."""
    counts = Counter(figure.metric for figure in found.figures)
    first = next((metric for metric, count in counts.items() if count == max(counts.values())), "")
    return [(metric, metric == first) for metric in counts]


def _heading(column: Column) -> dict[str, str]:
    arrow = {"up": "↑", "down": "↓"}.get(column.better, "")
    said = {"up": "higher is better", "down": "lower is better"}.get(column.better, "")
    what = summary(column.metric.name).replace("`", "")
    return {"text": column.text.replace("_", " "), "name": column.name, "arrow": arrow, "said": said, "what": what}


def _cells(found: Found) -> list[dict[str, Any]]:
    """A row a cell, in the order of the methods."""
    rows = []
    for place, family in enumerate(found.families):
        for cells in family.cells.values():
            for name in cells:
                numbers = [column.numbers.get(name) for column in found.columns]
                rows.append(
                    {
                        "method": family.name,
                        "key": svg.key(place),
                        "called": found.short(name),
                        "samples": len(found.cells.by_name[name]),
                        "numbers": [
                            {"value": "baseline", "interval": ""}
                            if found.left_out(column, name)
                            else _written(column, one)
                            for column, one in zip(found.columns, numbers, strict=True)
                        ],
                    }
                )
    return rows


def _written(column: Column, one: Number | None) -> dict[str, str] | None:
    if one is None or math.isnan(one.value):
        return None
    ends = [small(end) if column.text == "across" else end for end in (one.value, one.low, one.high)]
    value, low, high = map(number, ends)
    return {"value": value, "interval": "" if math.isnan(one.low) else f"{low} – {high}"}


def _by_metric(found: Found) -> list[dict[str, Any]]:
    """Verdicts by metric, without the pairs that no metric can compare."""
    nowhere = _nowhere(found)
    groups: dict[str, list[Any]] = {}
    for verdict in found.verdicts:
        if (verdict.one, verdict.other) not in nowhere:
            groups.setdefault(verdict.metric, []).append(verdict)
    columns = {column.text: column for column in found.columns}
    word = {"up": "higher is better", "down": "lower is better", "none": "neither direction is better"}
    return [
        {
            "metric": metric,
            "better": word[columns[metric].better],
            "pairs": isinstance(columns[metric].metric, PairMetric),
            "rows": rows,
        }
        for metric, rows in groups.items()
    ]


def _nowhere(found: Found) -> list[tuple[str, str]]:
    kinds: dict[tuple[str, str], set[str]] = {}
    for verdict in found.verdicts:
        kinds.setdefault((verdict.one, verdict.other), set()).add(verdict.kind)
    return [pair for pair, own in kinds.items() if own == {APART}]


def _apart(found: Found) -> list[str]:
    """What is said of the pairs that no metric can compare."""
    plain = "{} and {} cannot be compared: they have no effective scale in common. Add scales to the sweep."
    return [found.apart.get(pair, plain.format(*pair)) for pair in _nowhere(found)]


def _headline(found: Found) -> str:
    """How many comparisons find a difference, of those that there are samples enough for."""
    kinds = Counter(verdict.kind for verdict in found.verdicts)
    compared, few = kinds.total() - kinds[APART] - kinds[FEW], kinds[FEW]
    decided = kinds[ONE] + kinds[OTHER] + kinds[BOTH]
    told = [f"{decided} of {counted_are(compared, 'comparison', 'finds', 'find')} a difference beyond its band."]
    few_of = counted(few, "more comparison" if compared else "comparison")
    silent = [f"{few_of} can tell nothing: there are too few samples or prompts."]
    return " ".join(told * bool(compared) + silent * bool(few))


def _baseline(found: Found) -> str:
    """The baseline, if a metric compares with it; else ""."""
    compares = any(isinstance(column.metric, PairMetric) for column in found.columns)
    return found.short(found.baseline) if compares and found.baseline else ""


def _claim(found: Found) -> dict[str, Any] | None:
    if found.claim is None:
        return None
    claim, findings = found.claim
    rows = [
        {
            "expected": str(one.expectation),
            "here": f"{number(one.of)} and {number(one.than)}",
            "difference": f"{number(one.of - one.than)} [{number(one.low)}, {number(one.high)}]",
            "verdict": one.verdict,
        }
        for one in findings
    ]
    said = {"words": claim.words, "remark": claim.remark, "paper": claim.paper}
    return {**said, "rows": rows, "verdict": overall(findings)}


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


def _figures(found: Found) -> list[dict[str, Any]]:
    return [
        {"name": figure.name, "metric": figure.metric, "title": figure.plot.title, "svg": figure.svg}
        for figure in found.figures
    ]


# --- images ----------------------------------------------------------------------------------------------------------


def _data(found: Found, budget: float) -> tuple[dict[str, Any], list[str]]:
    """What the page's script reads, and what is to be said of it."""
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
    each = [column.metric for column in found.columns if isinstance(column.metric, SampleMetric | PairMetric)]
    names = list(cells.by_name)
    texts: dict[int, dict[str, Any]] = {}
    samples: list[dict[str, Any]] = []
    rows = _rows(found.run, shown[-1]) if shown else {}
    for place, cell in enumerate(cells.by_name.values()):
        values = [_values(cells, cell, metric) for metric in each]
        for row, address in enumerate(cell.addresses):
            record = rows.get(address)
            if record is None:
                continue
            texts.setdefault(int(record["prompt_index"]), _prompt(record))
            samples.append(_sample(place, record, [value[row] for value in values]))
    said += _embedded(found.run, samples, budget)
    if len(samples) <= TRACED:
        _traced(found.run, samples)
    axes = _axes(found, names)
    data = {
        "cells": [_cell(found, name, axes) for name in names],
        "axes": [{"name": name, "values": values} for name, values in axes.items()],
        "metrics": [str(metric) for metric in each],
        "prompts": texts,
        "samples": samples,
        "run": _whole(found.run),
    }
    return data, said


COLUMNS = (
    "address", "prompt", "negative", "extra", "prompt_index", "seed", "evaluations", "effective_scale", "across",
    "guided_steps", "seconds", "image",
)  # fmt: skip


def _rows(run: RunFolder, last: int) -> dict[str, dict[str, Any]]:
    """The records of the prompts up to `last`, by address."""
    table = run.records()
    table = table.filter(pc.field("prompt_index") <= last)
    wanted = [name for name in table.column_names if name in COLUMNS or name.startswith("label.")]
    return {row["address"]: row for row in table.select(wanted).to_pylist()}


def _values(cells: Cells, cell: Cell, metric: SampleMetric | PairMetric) -> Any:
    """Of each image; NaN where it has none, and of the baseline's, which are like themselves."""
    try:
        baseline = cells.baseline if isinstance(metric, PairMetric) else None
        return np.full(len(cell), math.nan) if cell is baseline else cell.values(metric, baseline)
    except InputError:
        return np.full(len(cell), math.nan)


def _prompt(record: Mapping[str, Any]) -> dict[str, Any]:
    labels = {
        name.removeprefix("label."): value for name, value in record.items() if name.startswith("label.") and value
    }
    found = {"text": record.get("prompt") or "", "labels": labels}
    return found | {name: record[name] for name in ("negative", "extra") if record.get(name)}


def _sample(cell: int, record: Mapping[str, Any], values: Sequence[float]) -> dict[str, Any]:
    def short(value: Any, digits: int = 5) -> float | None:
        return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")

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
    }


def _axes(found: Found, names: Sequence[str]) -> dict[str, list[str]]:
    """The axes along which cells differ, with their values in the sweep's order."""
    axes: dict[str, dict[str, None]] = {}
    for cell in _told(found, names):
        for name, value in _places(cell).items():
            axes.setdefault(name, {}).setdefault(value)
    # A cell that does not use an axis is there for all its values: that it has none is nothing to choose.
    used = {name: [value for value in values if value != UNUSED] for name, values in axes.items() if len(values) > 1}
    return {name: values for name, values in used.items() if values}


def _told(found: Found, names: Sequence[str]) -> list[Mapping[str, Any]]:
    by_name = {cell["cell"]: cell for cell in found.cells.told["cells"]}
    return [by_name[name] for name in names]


def _places(cell: Mapping[str, Any]) -> dict[str, str]:
    given = {name: UNUSED if value is None else str(value) for name, value in cell["axes"].items()}
    return {"stack": str(cell["template"]), **given}


def _cell(found: Found, name: str, axes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    cell = _told(found, [name])[0]
    places = _places(cell)
    return {
        "id": name,
        "stack": cell["stack"],
        "called": found.short(name),
        "sampler": cell["sampler"],
        "steps": cell["steps"],
        "size": cell.get("size"),
        "dtype": cell["dtype"],
        "at": {axis: places.get(axis, UNUSED) for axis in axes},
    }


def _embedded(run: RunFolder, samples: Sequence[dict[str, Any]], budget: float) -> list[str]:
    """Put images into samples, as far as the budget goes; returns what is to be said of the rest."""
    with_images = [sample for sample in samples if sample["i"]]
    if not with_images:
        return ["The images of this run are not kept (images: none)."] if samples else []
    sizes, missing = 0.0, 0
    whole: dict[str, str] = {}
    for sample in with_images:
        try:
            whole[sample["a"]] = _uri(run.location.read(sample["i"]), sample["i"])
        except (OSError, InputError):
            missing += 1
            continue
        sizes += len(whole[sample["a"]])
        if sizes > budget * 1e6:
            break
    else:
        for sample in with_images:
            sample["d"] = whole.get(sample["a"])
        return _not_there(missing)
    del whole
    sizes, small, missing = 0.0, 0, 0
    for sample in with_images:
        try:
            image = run.image(sample["i"])
        except InputError:
            missing += 1
            continue
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        sink = io.BytesIO()
        image.save(sink, format="WEBP", quality=QUALITY)
        uri = _uri(sink.getvalue(), ".webp")
        sizes += len(uri)
        if sizes > budget * 1e6:
            break
        sample |= {"d": uri, "f": 1}
        small += 1
    said = (
        f"{small} of {counted_are(len(with_images), 'image')} in this page, made smaller; all in full size are in its "
        "folder, and are shown where the page lies there."
    )
    return [said, *_not_there(missing)]


def _not_there(missing: int) -> list[str]:
    return [f"{counted_are(missing, 'image')} not in the folder."] if missing else []


def _uri(data: bytes, name: str) -> str:
    kind = "webp" if name.endswith(".webp") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _traced(run: RunFolder, samples: Sequence[dict[str, Any]]) -> None:
    """The effective scale by step, where it was kept."""
    traces = run.traces([sample["a"] for sample in samples])
    for sample in samples:
        scales = traces.get(sample["a"], {}).get("effective_scale")
        if scales is not None:
            sample["n"] = [float(f"{value:.4g}") if math.isfinite(value) else None for value in scales]
