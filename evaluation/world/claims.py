"""Papers' claims in a world: YAML files like those of ``configs/world``, and what the samples say of them.

A row compares a measure in two cells, over batches of samples that begin with the same noise. With the interval of the
difference at 95% and X, the smallest difference that matters, which the file gives:

=============  ==================================  ==================================  ================================
``be``         holds if the interval lies          does not hold if it lies            no difference larger than X
=============  ==================================  ==================================  ================================
`lower`        below 0                             above 0                             if it lies within (-X, X)
`higher`       above 0                             below 0                             if it lies within (-X, X)
`not lower`    above -X                            below -X
`not higher`   below X                             above X
`same`         within (-X, X)                      outside of (-X, X)
=============  ==================================  ==================================  ================================

The last column goes first: a difference that is certain, and too small to matter, decides nothing. What is left is
undecided, and needs more samples. Intervals are of each row by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ...guidance.errors import InputError, shown
from ...guidance.files import replacing
from ...guidance.notation.presets import read
from ...guidance.reading import read_bytes, yaml_of
from ...guidance.words import counted
from .. import values
from ..analysis.findings import CONTRARY, HOLDS, UNDECIDED, judge
from ..spec.claim import FORMS
from .draws import SAMPLER, STEPS, Drawn, draw
from .fitting import fitted
from .measures import AWAY, MEASURES, OTHERS, Against, Number, batched, interval
from .worlds import WORLDS, World

FOLDER = Path(__file__).parents[2] / "configs" / "world"
KEYS = ("words", "paper", "worlds", "cells", "rows", "fit", "remark")
CELL = ("stack", "condition", "negatives", "positives", "blur", "sampler", "steps")
ROW = ("measure", "of", "be", "than", "matters", "law", "baseline", "worlds")
EXACT = "exact"  # the cell of exact draws of a row's law
FIT = "{fit}"  # in a stack: the file of coefficients that the claim has fitted
BATCHES, SIZE = 20, 1000
LARGEST = 1_000_000  # bytes of a file
NOTHING = "no difference"


@dataclass(frozen=True)
class Cell:
    """How samples are drawn: the arguments of `draw`, beside the world."""

    stack: str
    condition: str = "a"
    negatives: tuple[str, ...] = ()
    positives: tuple[str, ...] = ()
    blur: float = 1.0
    sampler: str = SAMPLER
    steps: int = STEPS

    @property
    def beside(self) -> str:
        """What is not as usual beside the stack, as words that follow it."""
        given = [(one.name, getattr(self, one.name)) for one in dataclasses.fields(self) if one.name != "stack"]
        usual = Cell("")
        return "".join(
            f", {name} {' and '.join(value) if isinstance(value, tuple) else value}"
            for name, value in given
            if value != getattr(usual, name)
        )


@dataclass(frozen=True)
class Row:
    """How a measure in one cell is to stand to that in another.

    Args:
        measure: its name.
        of: name of a cell.
        be: one of the words of the module's table.
        than: name of another cell, or ``"exact"``.
        matters: X, the smallest difference that matters, in the measure's unit.
        law: what is compared with; that of the cell's condition if "".
        baseline: name of the cell that ``away`` compares with.
        worlds: where.
    """

    measure: str
    of: str
    be: str
    than: str
    matters: float
    law: str
    baseline: str
    worlds: tuple[str, ...]

    def __str__(self) -> str:
        to = f" to {self.law}" * bool(self.law) + f" from {self.baseline}" * bool(self.baseline)
        return (
            f"{self.measure}{to} of {self.of} is {self.be} {'as' if self.be == 'same' else 'than'} that of {self.than}"
        )


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what follows from it in a world.

    Args:
        words: the claim.
        paper: its number on arXiv.
        cells: by name.
        rows: what follows.
        fit: name of the cell on whose runs LinearAG's coefficients are fitted, or "".
        remark: what is to be said of the findings, or "".
    """

    words: str
    paper: str
    cells: Mapping[str, Cell]
    rows: tuple[Row, ...]
    fit: str = ""
    remark: str = ""


def names() -> list[str]:
    """The claims that come with guidestack."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_claim(source: str) -> Claim:
    """Read a claim, strictly.

    Args:
        source: one of `names`, or the path of a YAML file.

    Raises:
        InputError: there is no such file, or it is no claim; the message names the key.
    """
    path = FOLDER / f"{source}.yaml" if source in names() else Path(values.file(source, "the claim"))
    if path.suffix != ".yaml":
        raise InputError(
            f"no claim {shown(source)}, neither a YAML file nor one that comes with guidestack"
            f"{values.meant(source, names())}"
        )
    where = path.name
    given = values.check_keys(yaml_of(read_bytes(path, "claim", LARGEST), where, "a claim"), KEYS, where)
    for key in ("words", "paper", "cells", "rows"):
        if not given.get(key):
            raise InputError(f"{where}: give {key}; a claim of a world has {', '.join(KEYS)}")
    worlds = _listed(given.get("worlds", list(WORLDS)), f"{where}: worlds", list(WORLDS))
    if not isinstance(given["cells"], Mapping) or not isinstance(given["rows"], list):
        raise InputError(f"{where}: cells must be a mapping of names to cells, and rows a list")
    cells = {str(name): _cell(one, f"{where}: cells: {name}") for name, one in given["cells"].items()}
    rows = [_row(one, f"{where}: rows {place}", cells, worlds) for place, one in enumerate(given["rows"], 1)]
    return Claim(
        words=values.text(given["words"], f"{where}: words"),
        paper=values.text(given["paper"], f"{where}: paper"),
        cells=cells,
        rows=tuple(rows),
        fit=values.choice(given["fit"], f"{where}: fit", list(cells)) if given.get("fit") else "",
        remark=values.text(given["remark"], f"{where}: remark") if given.get("remark") else "",
    )


def _listed(given: Any, where: str, valid: Sequence[str] | None = None) -> tuple[str, ...]:
    listed = given if isinstance(given, list) else [given]
    return tuple(values.choice(one, where, valid) if valid else values.text(one, where) for one in listed)


def _cell(given: Any, where: str) -> Cell:
    given = values.check_keys({"stack": given} if isinstance(given, str) else given, CELL, where)
    stack = values.text(given.get("stack"), f"{where}: stack")
    if FIT not in stack:
        read(stack)
    several = {key: _listed(given[key], f"{where}: {key}") for key in ("negatives", "positives") if key in given}
    cell = Cell(**{**given, **several, "stack": stack})
    for condition in (cell.condition, *cell.negatives, *cell.positives):
        WORLDS["plane"].weights(condition)  # all worlds have the same words
    return cell


def _row(given: Any, where: str, cells: Mapping[str, Cell], worlds: tuple[str, ...]) -> Row:
    given = values.check_keys(given, ROW, where)
    for key in ROW[:5]:
        if key not in given:
            told = "; it is the smallest difference that would matter" if key == "matters" else ""
            raise InputError(f"{where}: give {key}{told}")
    matters = given["matters"]
    if type(matters) not in (int, float) or not 0 < matters < float("inf"):
        raise InputError(
            f"{where}: matters is the smallest difference that would matter, above 0; got {shown(matters)}"
        )
    measure = values.choice(given["measure"], f"{where}: measure", [*MEASURES, *OTHERS])
    baseline = values.choice(given["baseline"], f"{where}: baseline", list(cells)) if "baseline" in given else ""
    if (measure == AWAY) != bool(baseline):
        raise InputError(f"{where}: the measure away, and no other, has a baseline, the name of a cell")
    return Row(
        measure=measure,
        of=values.choice(given["of"], f"{where}: of", list(cells)),
        be=values.choice(given["be"], f"{where}: be", FORMS),
        than=values.choice(given["than"], f"{where}: than", [*cells, EXACT]),
        matters=float(matters),
        law=values.text(given["law"], f"{where}: law") if "law" in given else "",
        baseline=baseline,
        worlds=_listed(given["worlds"], f"{where}: worlds", worlds) if "worlds" in given else worlds,
    )


@dataclass
class Store:
    """Samples of cells, kept in a folder so that a run goes on where it was stopped.

    Args:
        folder: where; made if it is not there. Empty it after a change to a rule: files are known by what is asked for.
        batches: of samples of a cell.
        size: of a batch.
        seed: of the first sample.
    """

    folder: Path
    batches: int = BATCHES
    size: int = SIZE
    seed: int = 0
    _against: dict[tuple[str, str, str], Against] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Samples of a cell."""
        return self.batches * self.size

    def against(self, world: World, law: str, condition: str) -> Against:
        """What is compared with; exact draws of a law are made once."""
        key = (world.name, law, condition)
        if key not in self._against:
            self._against[key] = Against(world, world.law(law), condition)
        return self._against[key]

    def drawn(self, world: World, cell: Cell, fit: Cell | None = None) -> Drawn:
        """The samples of a cell, drawn unless they are there."""
        asked = {"world": world.name, "count": self.count, "seed": self.seed, **dataclasses.asdict(cell)}
        asked |= {name: version(name) for name in ("torch", "diffusers")}
        digest = hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=8).hexdigest()
        path = self.folder / f"{world.name}-{digest}.npz"
        if path.exists():
            with np.load(path) as found:
                return Drawn(torch.from_numpy(found["x"]), float(found["evaluations"]), float(found["seconds"]))
        arguments = dataclasses.asdict(cell)
        if FIT in cell.stack and fit is not None:
            coefficients = self.folder / f"{world.name}-{digest}.safetensors"
            fitted(world, dataclasses.asdict(fit), coefficients)
            arguments["stack"] = cell.stack.replace(FIT, str(coefficients))
        drawn = draw(world, **arguments, count=self.count, seed=self.seed, batch=self.size)
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, x=drawn.x.numpy(), evaluations=drawn.evaluations, seconds=drawn.seconds)
        return drawn


@dataclass(frozen=True)
class Finding:
    """What the samples of a world say of a row.

    Args:
        row: that.
        world: where.
        of: the measure in its one cell.
        than: in the other.
        difference: of the two, batch by batch.
    """

    row: Row
    world: str
    of: Number
    than: Number
    difference: Number

    @property
    def verdict(self) -> str:
        """`HOLDS`, `CONTRARY`, `NOTHING` or `UNDECIDED`."""
        return verdict(self.difference.low, self.difference.high, self.row.be, self.row.matters)

    @property
    def said(self) -> str:
        """The verdict in words."""
        return f"{NOTHING} larger than {self.row.matters:g}" if self.verdict == NOTHING else self.verdict

    @property
    def told(self) -> str:
        """The verdict, and both values and the difference with its interval."""
        low, high = self.difference.low, self.difference.high
        return (
            f"{self.said}: {self.world}: {self.row}: {self.of.value:.4g} and {self.than.value:.4g}, difference "
            f"{self.difference.value:+.4g} [{low:+.4g}, {high:+.4g}]"
        )

    def plain(self) -> dict[str, Any]:
        """What was found, for JSON."""
        numbers = {key: getattr(self, key)._asdict() for key in ("of", "than", "difference")}
        return {"expected": str(self.row), "world": self.world, "matters": self.row.matters, **numbers}


def verdict(low: float, high: float, be: str, matters: float) -> str:
    """What an interval of a difference says; see the module's table.

    >>> [verdict(*ends, "lower", 0.1) for ends in [(-0.3, -0.05), (-0.09, -0.01), (-0.3, 0.2), (0.01, 0.2)]]
    ['holds', 'no difference', 'undecided', 'does not hold']
    """
    if be in ("lower", "higher"):
        return NOTHING if -matters < low and high < matters else judge(low, high, be)
    return judge(low, high, be, matters)


def findings(claim: Claim, store: Store) -> list[Finding]:
    """Draw what is missing, and say what each row shows in each of its worlds."""
    return [_found(claim, row, WORLDS[name], store) for row in claim.rows for name in row.worlds]


def tested(claim: Claim, folder: Path | None) -> list[Finding]:
    """As `findings`, with the samples kept in `folder`; in a temporary one where there is none."""
    if folder is not None:
        return findings(claim, Store(folder))
    with TemporaryDirectory() as made:
        return findings(claim, Store(Path(made)))


def _found(claim: Claim, row: Row, world: World, store: Store) -> Finding:
    condition = claim.cells[row.of].condition
    to = store.against(world, row.law or condition, (row.law or condition).partition("^")[0])
    fit = claim.cells[claim.fit] if claim.fit else None
    if row.baseline:
        to = dataclasses.replace(to, baseline=store.drawn(world, claim.cells[row.baseline], fit).x)

    def each(name: str) -> Any:
        exact = name == EXACT
        drawn = Drawn(to.law.draw(store.count, 1), 0.0) if exact else store.drawn(world, claim.cells[name], fit)
        return batched(drawn, row.measure, to, store.size)

    of, than = each(row.of), each(row.than)
    return Finding(row, world.name, interval(of), interval(than), interval(of - than))


def overall(found: Sequence[Finding]) -> str:
    """The verdict on a claim, by its rows: ``holds in 4 of 5 rows; no difference in 1``."""
    counts = Counter(one.verdict for one in found)
    if counts[HOLDS] == len(found):
        return f"{HOLDS} in all {counted(len(found), 'row')}"
    others = [f"{word} in {counts[word]}" for word in (CONTRARY, NOTHING, UNDECIDED) if counts[word]]
    return "; ".join([f"{HOLDS} in {counts[HOLDS]} of {counted(len(found), 'row')}", *others])
