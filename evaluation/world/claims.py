"""Papers' claims in a world: YAML files like those of ``configs/world``, and what the samples say of them.

A row compares a measure in two cells, over batches of samples that begin with the same noise; `verdicts` says what the
interval of the difference says of it. Intervals are of each row by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, model_validator
from torch import Tensor

from ...guidance.errors import InputError, shown
from ...guidance.files import replacing
from ...guidance.notation.presets import read
from ...guidance.observe import Seen
from ...guidance.query import POSITIVE
from ...guidance.reading import read_bytes, yaml_of
from ...guidance.rules.linear_ag import fit as linear
from ...guidance.rules.linear_ag.rule import GUIDED, PAPER, Recorded, letters
from ...samplers import canonical
from .. import verdicts
from ..values import Checked, Text, checked, meant, read_by
from ..verdicts import Be
from .draws import SAMPLER, STEPS, Drawn, draw
from .measures import AWAY, MEASURES, OTHERS, Against, Number, batched, interval
from .worlds import WORLDS, World

RUNS, FIRST = 400, 1 << 41  # runs that coefficients are fitted on, of seeds that no cell has
FOLDER = Path(__file__).parents[2] / "configs" / "world"
EXACT = "exact"  # the cell of exact draws of a row's law
FIT = "{fit}"  # in a stack: the file of coefficients that the claim has fitted
BATCHES, SIZE = 20, 1000
MAX_BYTES = 1_000_000  # bytes of a file


def _condition(text: str) -> str:
    try:
        WORLDS["plane"].weights(text)  # all worlds have the same words
    except InputError as error:
        raise ValueError(str(error)) from error
    return text


def _stack(text: str) -> str:
    if FIT not in text:
        read(text)
    return text


def _tuple(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else (given,) if isinstance(given, str) else given


def _short(given: Any) -> Any:
    return {"stack": given} if isinstance(given, str) else given


Condition = Annotated[Text, AfterValidator(_condition)]
Conditions = Annotated[tuple[Condition, ...], BeforeValidator(_tuple)]
Worlds = Annotated[tuple[Literal["plane", "space"], ...], BeforeValidator(_tuple)]


class Cell(Checked):
    """How samples are drawn: the arguments of `draw`, beside the world. In YAML the stack alone will do."""

    stack: Annotated[Text, read_by(lambda text, _: _stack(text))]
    condition: Condition = "a"
    negatives: Conditions = ()
    positives: Conditions = ()
    blur: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    sampler: Annotated[Text, read_by(lambda text, _: canonical(text))] = SAMPLER
    steps: Annotated[int, Field(ge=1, le=1000)] = STEPS

    @property
    def beside(self) -> str:
        """What is not as usual beside the stack, as words that follow it."""
        given = self.model_dump(exclude={"stack"}, exclude_defaults=True)
        return "".join(
            f", {name} {' and '.join(value) if isinstance(value, tuple) else value}" for name, value in given.items()
        )


class Row(Checked):
    """How a measure in one cell is to stand to that in another.

    Args:
        measure: its name.
        of: name of a cell.
        be: one of the words of the table of `verdicts`.
        than: name of another cell, or ``"exact"``.
        matters: X, the smallest difference that matters, in the measure's unit.
        law: what is compared with; that of the cell's condition if "".
        baseline: name of the cell that ``away`` compares with.
        worlds: where; all of the claim's by default.
    """

    measure: Text
    of: Text
    be: Be
    than: Text
    matters: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    law: str = ""
    baseline: str = ""
    worlds: Worlds = ()

    def __str__(self) -> str:
        to = f" to {self.law}" * bool(self.law) + f" from {self.baseline}" * bool(self.baseline)
        return verdicts.expected(f"{self.measure}{to}", self.of, self.be, self.than)


class Claim(Checked):
    """What a paper says, and what follows from it in a world.

    Args:
        words: the claim.
        paper: its number on arXiv.
        cells: by name.
        rows: what follows.
        worlds: where.
        fit: name of the cell on whose runs LinearAG's coefficients are fitted, or "".
        remark: what is to be said of the findings, or "".
    """

    words: Text
    paper: Text
    cells: Annotated[dict[str, Annotated[Cell, BeforeValidator(_short)]], Field(min_length=1)]
    rows: Annotated[list[Row], Field(min_length=1)]
    worlds: Worlds = ("plane", "space")
    fit: str = ""
    remark: str = ""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for place, row in enumerate(self.rows, 1):
            known = {"measure": [*MEASURES, *OTHERS], "of": self.cells, "than": [*self.cells, EXACT]}
            known |= {"baseline": ["", *self.cells]}
            for key, valid in known.items():
                if getattr(row, key) not in valid:
                    name = getattr(row, key)
                    raise ValueError(f"rows: entry {place}: {key}: unknown value {shown(name)}{meant(name, valid)}")
            if (row.measure == AWAY) != bool(row.baseline):
                raise ValueError(
                    f"rows: entry {place}: the measure away, and no other, has a baseline, which is a cell"
                )
        if self.fit not in ("", *self.cells):
            raise ValueError(f"fit: unknown value {shown(self.fit)}{meant(self.fit, list(self.cells))}")
        return self


_CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)


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
    path = FOLDER / f"{source}.yaml" if source in names() else Path(source)
    if path.suffix != ".yaml":
        raise InputError(
            f"no claim {shown(source)}, neither a YAML file nor one that comes with guidestack{meant(source, names())}"
        )
    return checked(_CLAIM, yaml_of(read_bytes(path, "claim", MAX_BYTES), path.name, "a claim"), path.name)


def fitted(world: World, cell: Mapping[str, Any], path: Path) -> None:
    """Fit the coefficients on runs of a cell, and write them.

    Args:
        world: where.
        cell: the arguments of `draw`; its stack is the one that LinearAG is to wrap.
        path: the file.
    """
    c: list[Tensor] = []
    u: list[Tensor] = []
    identity: dict[str, str] = {}

    def seen(one: Seen) -> dict[str, Tensor]:
        contrast = one.stack.contrast
        assert contrast is not None  # a stack that LinearAG can wrap
        c.append(one.predictions[POSITIVE].noise)
        u.append(one.predictions[contrast].noise)
        known = one.step.run.identity or {}
        identity.update({name: value for name, value in known.items() if value is not None})
        return {}

    recorded = Recorded(read(cell["stack"]))
    draw(world, **{**cell, "stack": recorded, "count": RUNS, "batch": RUNS, "seed": FIRST}, observe=seen)
    fit = linear.Fit.empty(str(recorded), len(c), identity).with_runs(c, u)
    fit = dataclasses.replace(fit, made={"runs": str(RUNS)})
    linear.write(fit, path, [letter == GUIDED for letter in letters(PAPER, len(c))])


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
        asked = {"world": world.name, "count": self.count, "seed": self.seed, **cell.model_dump()}
        asked |= {name: version(name) for name in ("torch", "diffusers")}
        digest = hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=8).hexdigest()
        path = self.folder / f"{world.name}-{digest}.npz"
        if path.exists():
            with np.load(path) as found:
                return Drawn(torch.from_numpy(found["x"]), float(found["evaluations"]), float(found["seconds"]))
        arguments = cell.model_dump()
        if FIT in cell.stack and fit is not None:
            coefficients = self.folder / f"{world.name}-{digest}.safetensors"
            fitted(world, fit.model_dump(), coefficients)
            arguments["stack"] = cell.stack.replace(FIT, str(coefficients))
        drawn = draw(world, **arguments, count=self.count, seed=self.seed, batch=self.size)
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, x=drawn.x.numpy(), evaluations=drawn.evaluations, seconds=drawn.seconds)
        return drawn


@dataclass(frozen=True)
class Finding(verdicts.Finding):
    """What the samples of a world say of a row.

    Args:
        numbers: the measure in both cells and their difference batch by batch, with intervals, by name.
    """

    numbers: Mapping[str, Number] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """What was found, for JSON."""
        numbers = {name: one._asdict() for name, one in self.numbers.items()}
        return {"expected": self.expected, "world": self.where, "matters": self.matters, **numbers}


def findings(claim: Claim, store: Store) -> list[Finding]:
    """Draw what is missing, and say what each row shows in each of its worlds."""
    return [_finding(claim, row, WORLDS[name], store) for row in claim.rows for name in row.worlds or claim.worlds]


def tested(claim: Claim, folder: Path | None) -> list[Finding]:
    """As `findings`, with the samples kept in `folder`; in a temporary one where there is none."""
    if folder is not None:
        return findings(claim, Store(folder))
    with TemporaryDirectory() as made:
        return findings(claim, Store(Path(made)))


def _finding(claim: Claim, row: Row, world: World, store: Store) -> Finding:
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
    found = {"of": interval(of), "than": interval(than), "difference": interval(of - than)}
    low, high = found["difference"][1:]
    values = found["of"].value, found["than"].value
    return Finding(str(row), row.be, row.matters, *values, low, high, where=world.name, numbers=found)
