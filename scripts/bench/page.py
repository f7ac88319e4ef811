"""docs/performance.md, made from the rows that ``guidestack bench --json`` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...guidance.errors import InputError
from ...guidance.reading import json_of, read_bytes
from .table import Measured, line, short

OPTIONAL = ("guider_ratio", "modular_ratio")
ENDS = ("low", "median", "high")
LONG = 1000  # milliseconds from which on a time is given in seconds
MAX_BYTES = 10_000_000  # bytes

INTRODUCTION = """# Performance

An image costs at least its network evaluations. This page shows what guidance costs beside them. Every rule runs on
the same weights and seeds as the stock diffusers pipeline with its own classifier-free guidance, in one process, and
runs of both alternate.

The page is generated from docs/performance.json, which `guidestack bench --model MODEL --batch IMAGES --json FILE`
writes, and from docs/performance-arithmetic.json, -merging, -sweep, -edits and -comfyui, which the commands below
write: `guidestack bench --from docs/performance.json --from FILE ... --page docs/performance.md`.
`guidestack bench --quick` prints all rows in a minute, for one image and few steps.

* **time**: the time of a whole run, divided by that of the stock pipeline. The median, smallest and largest ratio to
  the stock runs next to it.
* **evaluations**: rows over all network calls, divided by those of the stock pipeline.
* **efficiency**: the time of the network's calls alone, divided by the same time plus what guidance adds. The first is
  measured on a copy of the network, which is called with the same arguments right before or after each call of the
  run. What guidance adds is the time outside of the calls, less that of the stock pipeline. Encoding the prompt and
  decoding the image belong to the pipeline and do not count. Encoding a text that only the rule needs counts against
  the rule: the random texts of ICG, which are most of what it adds, and the negatives of Perp-Neg. For Adaptive
  Guidance, whose samples stop at different steps, efficiency shows what it costs to leave rows out of a batch.
* **network**: the time of the network's calls alone, divided by that of the whole run, with encoding and decoding. The
  rest is all that could still be saved.
* **memory**: the most bytes of tensors allocated during a run, without the weights, divided by the stock pipeline's.
* **added**: the time that guidance spends outside of the network in each step, less what the stock pipeline spends.
* **guider**: the time of the rule's arithmetic, divided by that of the diffusers guider of the same rule, on samples of
  this size, where there is such a guider. On small samples both are some ten calls from Python, a few hundredths of a
  millisecond; for large samples see `guidestack bench arithmetic`.
* **Modular**: the time of a whole run, divided by that of a Modular pipeline of diffusers with that guider, on a Stable
  Diffusion XL of the model's size.

Three commands measure what does not depend on samples. `guidestack bench start` measures the import and the command's
first step; `guidestack bench install` measures the hooks, and what a hundred calls leave behind; `guidestack bench
caches` measures whether the savings of Adaptive Guidance and of a feature cache multiply, on a random transformer.
Keys and values of the text are computed in each call, as in the stock pipeline: no network of diffusers takes them as
an argument, and keeping them would cost more memory than a rule may use.

The rules of the prompt's own pass (`nag`, `nasa`, `pladis`) evaluate the network as often as `stack()`, so compare
their time with its row. What their edits cost within the network counts against their efficiency.

The time of a rule may be below or above its share of evaluations, because a call with fewer rows costs more per row.
Efficiency in a run of few steps is a median of few calls, known to some hundredths only, and what is encoded once a run
has more weight there than in a run of usual length.
"""
PARTS = {
    "arithmetic over": """## One step without the network

`guidestack bench arithmetic` measures all that a rule does after the network has answered, on float32 latents of eight
pictures of 1024x1024 pixels: its processor time, divided by that of the `forward` of a guider of diffusers. A rule
makes a few passes over memory. Some rules need more passes than `apg`:

* `fdg` splits every channel by a pyramid, which is four products with matrices of the picture's sides;
* `fresca` makes a Fourier transform and its inverse;
* `threshold` finds the exact quantile of every channel among the largest numbers of its parts;
* `skimmed` tests each element twice, with three products and comparisons each time.
""",
    "a merged pass": """## Token merging

`guidestack bench merging --clock cpu` measures one pass of the network for one sample with a share of the tokens merged
by importance, divided by the plain pass. Finding the tokens that are alike is part of the time. Latents of 32x32 belong
to pictures with a side of 256 pixels, those of 64x64 to 512. Merging saves time where the ratio is below 1.
""",
    "a sweep": """## Sweeps

`python -m guidestack.scripts.bench.sweep --only speed --clock cpu --json docs/performance-sweep.json` measures a sweep
of the bundled model with its records, its images as PNG and its merge. It is compared with the bare pipeline under its
own guidance on the same prompts and seeds; the batches of both alternate. The ratio is that of all batches but the
first two, and the range is that of single batches. The aims are 0.97 of the bare pipeline's images a second, which is
a ratio of 1.031, and constant memory: what the process holds after each batch of its second half, divided by the most
that it held in its second quarter. A run that was ended by Ctrl-C, such as that of these rows, keeps its results and
says how many images they come from.
""",
    "a perturbed pass": """## Edits of the network

`guidestack bench edits --model bundled --repeats 101 --clock cpu` measures a pass of the network for one sample with
the edit of a rule's second evaluation, divided by the plain pass; `--model sd15-shaped --repeats 3` does so on a
network of Stable Diffusion 1.5's shape. The aim is a ratio of at most 1.01; edits that leave blocks out take less.
All edits meet it on the shaped network. On the bundled one, whose pass takes 20 ms, intercepting attention costs up
to 0.4 ms more.
""",
    "the guider in ComfyUI": """## In ComfyUI

`python -m guidestack.scripts.dev.comfyui --json FILE` measures the processor time of whole runs under the node
"Guider", divided by that of ComfyUI's own guider with the same scale. It runs the bundled network on the stand-in for
ComfyUI that the tests use; no real ComfyUI was timed. The aim is a ratio of at most 1.02.
""",
}
"""What stands above the rows of other commands, by how the rows' `what` begins."""


def read(path: Path) -> list[Measured]:
    """The rows of results that a file of ``guidestack bench --json`` has.

    Raises:
        InputError: there is none, or it holds something else.
    """
    data = read_bytes(path, "file of the bench", MAX_BYTES)
    try:
        rows: Any = json_of(data)
        json.dumps(rows, allow_nan=False)  # its numbers are finite
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not rows or not all(map(_whole, rows)):
        raise InputError(f"{str(path)!r} is not a file of the bench: expected what guidestack bench --json writes")
    return rows


def _whole(row: Any) -> bool:
    """Whether a row has what the page and the terminal show of it."""
    try:
        return text([row]) != INTRODUCTION and ("what" in row or bool(line(row)))
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def text(rows: Sequence[Measured]) -> str:
    """The text of docs/performance.md."""
    parts = [INTRODUCTION]
    whole = [row for row in rows if "what" not in row]
    for key in dict.fromkeys((row["model"], row["batch"], row["clock"]) for row in whole):
        here = [row for row in whole if (row["model"], row["batch"], row["clock"]) == key]
        parts.append(_section(here))
    for begin, head in PARTS.items():
        here = [row for row in rows if row.get("what", "").startswith(begin)]
        parts += [head, *_parts(here)] if here else []
    return "\n".join(parts)


def _parts(rows: Sequence[Measured]) -> Iterator[str]:
    """A table for each thing that was measured."""
    for what in dict.fromkeys(row["what"] for row in rows):
        here = [row for row in rows if row["what"] == what]
        first = here[0]
        yield f"{what[0].upper()}{what[1:]}; {first['machine']}, {first['threads']} thread, torch {first['torch']}:\n"
        yield "| | stack | time | over |\n|---|---|---|---|"
        for row in here:
            low, median, high = (row["ratio"][end] for end in ENDS)
            seconds = 1000 * row["seconds"]["median"]
            time = f"{seconds:.2f} ms" if seconds < LONG else f"{seconds / 1000:.2f} s"
            yield f"| {row['name']} | {_stack(row)} | {time} | {median:.3f} ({low:.3f} to {high:.3f}) |"
        yield ""


def _section(rows: Sequence[Measured]) -> str:
    first = rows[0]
    unit = "processor" if first["clock"] == "cpu" else "wall"
    lines = [
        f"## {first['model']}, {first['batch']} image{'s' * (first['batch'] > 1)}"
        f"{', processor time' * (first['clock'] == 'cpu')}\n",
        f"{first['machine']}, {first['threads']} thread{'s' * (first['threads'] > 1)}; {unit} time, medians of "
        f"{first['rounds']} round{'s' * (first['rounds'] > 1)} of {_steps(rows)}; torch {first['torch']}, "
        f"diffusers {first['diffusers']}, Python {first['python']}.\n",
        "| stack | time | evaluations | efficiency | network | memory | added | guider | Modular |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            _stack(row),
            f"{row['time_ratio']:.3f} ({row['time_low']:.3f} to {row['time_high']:.3f})",
            f"{row['evaluation_ratio']:.3f}",
            f"{row['efficiency']:.3f}",
            f"{row['network_share']:.3f}",
            f"{row['memory_ratio']:.3f}",
            f"{row['added_ms']:.2f} ms",
            *("" if row[name] is None else f"{row[name]:.2f}" for name in OPTIONAL),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for row in rows:
        lines += [f"\n{_stack(row)}: {fault}." for fault in short(row)]
    return "\n".join(lines) + "\n"


def _steps(rows: Sequence[Measured]) -> str:
    first, *others = dict.fromkeys(row["steps"] for row in rows)
    apart = {steps: ", ".join(_stack(row) for row in rows if row["steps"] == steps) for steps in others}
    return f"{first} steps" + "".join(f" ({steps} for {which})" for steps, which in apart.items())


def _stack(row: Measured) -> str:
    text = row["stack"].replace("|", "\\|")
    notes = []
    if row.get("negatives"):
        notes.append(f"{row['negatives']} negative{'s' * (row['negatives'] > 1)}")
    if row.get("max_rows"):
        notes.append(f"max_rows={row['max_rows']}")
    return f"`{text}`" + (f", {', '.join(notes)}" if notes else "")
