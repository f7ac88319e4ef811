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

An image costs at least its network evaluations. This page measures what guidance costs beside them: every rule, on
the same weights and seeds as the stock diffusers pipeline with its own classifier-free guidance, in one process,
interleaved.

It is made of docs/performance.json, whose rows are of `guidestack bench --model MODEL --batch IMAGES --json FILE`, and
of the files of the commands below beside it: `guidestack bench --from docs/performance.json --from FILE ... --page
docs/performance.md`, with docs/performance-arithmetic.json, -merging, -sweep, -edits and -comfyui. A table with all
rows in a minute, of one image and few steps: `guidestack bench --quick`.

* **time**: of a whole run over the stock pipeline's; median, smallest and largest ratio to the runs next to it.
* **evaluations**: rows over all network calls, over the stock pipeline's.
* **efficiency**: what the network's calls would cost by themselves, over what they cost with guidance around them. By
  themselves is a call of a copy of the network, right before or after one of the run, with the same arguments and
  nothing around it; what guidance adds is the time outside of the calls less that of the stock pipeline. Encoding the
  prompt and decoding the image are the pipeline's own and count for neither. Encoding what only a rule asks for counts
  against it: ICG's random texts, which are most of what it adds, and Perp-Neg's negatives. Of Adaptive Guidance, whose
  samples stop at different steps, it is what leaving rows out of a batch costs.
* **network**: the same numerator over the whole run, with text and decoding: what is left to win anywhere.
* **memory**: the most bytes in tensors allocated during a run, without the weights, over the stock pipeline's.
* **added**: time that guidance spends outside of the network in each step, beyond what the stock pipeline spends there.
* **guider**: time of the rule's arithmetic over that of diffusers' guider of the same rule, on samples of this size,
  where there is one. Of small samples both are some ten calls from Python, a few hundredths of a millisecond; of large
  ones `guidestack bench arithmetic` tells.
* **Modular**: time of a whole run over that of a Modular pipeline of diffusers with that guider, on a Stable Diffusion
  XL of the model's size.

What does not depend on samples has commands of its own: `guidestack bench start` (importing, and the command's first
step), `guidestack bench install` (hooks, and what a hundred calls leave behind), `guidestack bench caches`
(Adaptive Guidance with a feature cache on a random transformer: whether their savings multiply). Keys and values of the
text are computed anew in each call, as the stock pipeline does: no network of diffusers takes them as an argument, and
keeping them would cost more memory than the limit of a rule allows.

A rule of the prompt's own pass (`nag`, `nasa`, `pladis`) has the evaluations of `stack()`, with whose time in the same
table it is to be compared. What an edit does within the network counts against the rule's efficiency.

A rule may take less time than its share of evaluations says, or more: a call with fewer rows costs more for each.
Where a run has few steps, its efficiency is a median of few calls and known to some hundredths only, and what is
encoded once a run weighs as it would not in a run of usual length.
"""
PARTS = {
    "arithmetic over": """## One step without the network

`guidestack bench arithmetic`: all that a rule does once the network has answered, on float32 latents of eight
pictures of 1024x1024 pixels, over the forward of a guider of diffusers, by the processor time of the thread. A rule
makes a few passes over memory. Some cannot do with as few as `apg`:

* `fdg` splits every channel by a pyramid, which is four products with matrices of the picture's sides;
* `fresca` makes a Fourier transform and its inverse;
* `threshold` looks for a quantile of every channel, exactly, among the largest numbers of its parts;
* `skimmed` tests each element twice, with three products and comparisons each time.
""",
    "a merged pass": """## Token merging

`guidestack bench merging --clock cpu`: one pass of the network for one sample, with that share of the tokens merged
by importance, over the plain pass; finding which are alike is part of it. Latents of 32x32 are pictures of 256 pixels,
those of 64x64 of 512. Below 1 merging pays.
""",
    "a sweep": """## Sweeps

`python -m guidestack.scripts.bench.sweep --only speed --clock cpu --json docs/performance-sweep.json`: a sweep of the
bundled model, with its records, its images as PNG and its merge, over the bare pipeline with its own guidance on the
same prompts and seeds, each batch by one right after the other. The ratio is that of all batches but the first two, the
range that of single ones. A sweep is to keep 0.97 of the bare pipeline's images a second, which is a ratio of 1.031,
and a flat memory: what the process holds after each batch of its second half, over the most that it held in its second
quarter. A run ended by Ctrl-C, as that of these rows, keeps what it had and says of how many images.
""",
    "a perturbed pass": """## Edits of the network

`guidestack bench edits --model bundled --repeats 15 --clock cpu`: a pass of the network for one sample with the edit
that the second evaluation of a rule has, over the plain pass. It is one evaluation, and at most 1.01 is the bar; edits
that leave blocks out take less. On a machine that others use too the ratios of single rounds spread by 10% and more, so
that the medians are known to some 2%: a small network's pass of 30 ms does not tell 1% from none. `seg` misses the bar.
""",
    "the guider in ComfyUI": """## In ComfyUI

`python -m guidestack.scripts.dev.comfyui --json FILE`: whole runs under the node "Guider" by processor time, over
ComfyUI's own guider with the same scale, on the stand-in for ComfyUI that the tests use, around the bundled network.
At most 1.02 is the bar. No real ComfyUI was timed.
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
