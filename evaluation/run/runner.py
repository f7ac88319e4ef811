"""Running a sweep: what is missing is made, what is made is kept."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...guidance.errors import InputError, NonFiniteError
from ...guidance.notation.plugins import files_of, load_rules
from ...guidance.words import counted_are
from ...pipelines.models.generator import Asked, Generator, Made
from ...pipelines.models.loading import chosen_sampler
from ...pipelines.prompts import uses_negative
from ..effective_scale import strength
from ..spec.cells import Addresses, Cell, baseline_of, expand
from ..spec.sweep import Sweep
from ..store.folder import RunFolder
from ..store.lock import Launch, Lock, held
from . import history
from .batches import Batch, Place, Plan
from .check import Cost, check, notes, partnered
from .progress import Outcome, Progress
from .records import Keeper
from .writer import Writer

if TYPE_CHECKING:
    from .meter import Meter

GRACE = 60.0  # seconds that processes of a launch have to appear before their samples count as left over
POLL = 1.0  # seconds between two looks at whether the others are done


@dataclass(frozen=True)
class Options:
    """How a sweep is run. None of it changes what is made.

    Args:
        device: of the model.
        allow_pickle: load weights that are not safetensors.
        launch: the processes that share the work.
    """

    device: str = "cpu"
    allow_pickle: bool = False
    launch: Launch = field(default_factory=Launch)


class Prepared:
    """A sweep with its model, checked: nothing of it can be refused any more. Its files of rules are imported.

    Args:
        sweep: the sweep.
        options: how to run.
        generator: its model, where that is there already.

    Raises:
        GuidestackError: a cell is refused, or the model or a file of rules cannot be loaded.
    """

    def __init__(self, sweep: Sweep, options: Options, generator: Generator | None = None) -> None:
        for path in sweep.rules:
            load_rules(path)
        if sweep.fixed.get("sampler", "an axis") is None:
            sweep = dataclasses.replace(sweep, fixed={**sweep.fixed, "sampler": chosen_sampler(None, sweep.model)})
        self.cells: tuple[Cell, ...] = expand(sweep)
        # The folder's own sweep then names every file of rules that it needs, also those of the command line.
        used = [str(file.path) for cell in self.cells for file in files_of(cell.parsed)]
        sweep = dataclasses.replace(sweep, rules=tuple(dict.fromkeys([*sweep.rules, *used])))
        self.options = options
        self.generator = generator or generator_of(
            sweep.model, self.cells[0].dtype, options, sweep.networks, sweep.objectives
        )
        self.costs: dict[Cell, Cost] = check(self.generator, self.cells, sweep.prompts)
        alone: list[str] = []
        if sweep.partners and sweep.partners.steps is None:
            sweep, alone = partnered(self.generator, sweep, self.costs)
            self.cells = expand(sweep)
            self.costs = check(self.generator, self.cells, sweep.prompts)
        self.sweep = sweep
        baseline_of(sweep, self.cells)
        self.notes = [*notes(self.generator, self.cells, sweep.prompts), *alone]
        self.addresses = Addresses.of_model(
            self.generator.identity, self.generator.networks, self.generator.objective_digests
        )
        history.check(sweep, self.cells, self.addresses)
        self.meter = _meter(sweep, options.device)

    def plan(self, sweeps: Sequence[Sweep]) -> Plan:
        """The batches of the sweep, given the versions of it that a folder has seen."""
        return Plan(history.planned(sweeps, self.cells), self.addresses)

    def make(self, batch: Batch) -> Made:
        """Make a batch; the model is loaded anew where the batch needs weights of another type.

        Raises:
            GuidestackError: as `Generator.make`.
        """
        cell = batch.cell
        if self.generator.dtype != cell.dtype:  # the next one is loaded when it makes its first batch
            self.generator = generator_of(
                self.sweep.model, cell.dtype, self.options, self.sweep.networks, self.sweep.objectives
            )
        given = uses_negative(cell.parsed)  # else a batch would warn of it; `notes` says it once
        asked = []
        for sample in batch.samples:
            prompt, negative = sample.prompt, sample.prompt.negative if given else ""
            asked.append(Asked(prompt.text, sample.seed, negative, prompt.extra, prompt.class_id))
        return self.generator.make(asked, cell.parsed, cell.sampler, cell.steps, cell.size, observe=strength)


def generator_of(
    model: str | None,
    dtype: str,
    options: Options,
    networks: Mapping[str, str] | None = None,
    objectives: Mapping[str, str] | None = None,
) -> Generator:
    """A model for a sweep: any pipeline that there is a record for, also one without prompts; and further networks."""
    return Generator(
        model,
        dtype,
        options.device,
        options.allow_pickle,
        networks=networks,
        objectives=objectives,
        needs_prompts=False,
    )


def _meter(sweep: Sweep, device: str) -> Meter | None:
    if not sweep.metrics:
        return None
    from .meter import Meter  # the extractors take their time

    return Meter.of(sweep.metrics, sweep.prompts, sweep.baseline is not None, sweep.images != "none", device)


def run_sweep(prepared: Prepared, run: RunFolder, progress: Progress | None = None) -> Outcome:
    """Make what is missing of a sweep, and merge the records.

    Args:
        prepared: the sweep.
        run: where to.
        progress: told what happens.

    Raises:
        InputError: the folder holds another sweep, another run writes to it, or it cannot be written.
        GuidestackError: as the pipeline; what was finished before stays.
        KeyboardInterrupt: Ctrl-C, after what was finished is written.
    """
    progress = progress or Progress()
    sweep, launch = prepared.sweep, prepared.options.launch
    run.location.create()
    with held(run.location, launch) as lock:
        sweeps = history.versions(run, sweep, prepared.addresses)
        existing = run.addresses()
        if launch.rank == 0:
            for note in [*prepared.notes, *history.remarks(run, sweep, len(existing))]:
                progress.note(note)
            name = prepared.generator.identity["name"]
            history.write(run, sweeps, prepared.cells, prepared.addresses, name)
        plan = prepared.plan(sweeps)
        places = plan.places(existing)
        absent = sum(place.missing for place in places)
        mine = [place for number, place in enumerate(places) if number % launch.world == launch.rank]
        outcome, began = Outcome(existing=plan.samples - absent), time.monotonic()
        _make(prepared, run, lock, plan, mine, existing, progress, outcome)
        if launch.rank == 0:
            outcome.missing = absent - outcome.made - outcome.lost
            if launch.world > 1:
                outcome.missing = _await_others(run, lock, plan, launch, outcome.lost) - outcome.lost
                known = {sample.address for place in mine if place.missing for sample in plan.batch(place).samples}
                others = _evaluations(run, existing | known)
                outcome.others, outcome.others_evaluations = len(others), sum(others)
            lock.check()
        outcome.seconds = time.monotonic() - began
        outcome.records = run.merge() if launch.rank == 0 else 0
        return outcome


def dry_run(prepared: Prepared, run: RunFolder | None) -> tuple[Plan, set[str]]:
    """The batches of a sweep and the samples that exist, without writing anything.

    Raises:
        InputError: the folder holds another sweep.
    """
    if run is None or not run.location.exists():
        return prepared.plan([prepared.sweep]), set()
    sweeps = history.versions(run, prepared.sweep, prepared.addresses)
    return prepared.plan(sweeps), run.addresses()


def merge_only(run: RunFolder, launch: Launch) -> int:
    """Merge the records of a folder; returns their number.

    Raises:
        InputError: another run writes to it, or a part is damaged.
    """
    run.sweep()  # says so where there is none
    with held(run.location, launch):
        return run.merge()


def _make(
    prepared: Prepared,
    run: RunFolder,
    lock: Lock,
    plan: Plan,
    places: Sequence[Place],
    existing: set[str],
    progress: Progress,
    outcome: Outcome,
) -> None:
    """Make the batches at `places` that miss a sample, and count them in `outcome`."""
    wanted = sorted(place for place in places if place.missing)  # by block
    total = sum(place.missing for place in wanted)
    progress.begin(total, plan.samples - total)
    with _writing(run, progress) as writer:
        for place in wanted:
            lock.check()
            batch = plan.batch(place)
            done = prepared.make(batch)
            keeper = Keeper(prepared.sweep, prepared.addresses, prepared.generator, prepared.meter)
            spent = sum(done.report.evaluations)
            lost = {sample.address for at, sample in enumerate(batch.samples) if at not in done.images} - existing
            if done.lost and not outcome.cause:
                outcome.cause = str(done.lost)
                progress.note(f"{done.lost}; the run goes on without them")
            if len(lost) < place.missing:
                writer.add(functools.partial(keeper.kept, batch, done, existing), spent)
            outcome.made += place.missing - len(lost)
            outcome.evaluations += spent
            outcome.lost += len(lost)


@contextmanager
def _writing(run: RunFolder, progress: Progress) -> Iterator[Writer]:
    """A writer that has written everything at the end, also where that is an error or Ctrl-C."""
    writer = Writer(run, progress.made)
    try:
        yield writer
    finally:
        try:
            writer.close()
        finally:
            progress.end()


def _await_others(run: RunFolder, lock: Lock, plan: Plan, launch: Launch, lost: int) -> int:
    """Wait until the other processes have let go of the folder; returns how many samples are missing."""
    last_seen, seen = time.monotonic(), set[int]()
    while True:
        others = lock.others()
        seen |= set(others)
        if any(others.values()):
            last_seen = time.monotonic()
        else:
            existing = run.addresses()
            missing = sum(place.missing for place in plan.places(existing))
            all_seen = len(seen) == launch.world - 1
            # Done, dead, or they have never come.
            if missing <= lost or all_seen or time.monotonic() - last_seen > GRACE:
                return missing
        time.sleep(POLL)


def _evaluations(run: RunFolder, known: Collection[str]) -> list[int]:
    """The evaluations of each sample whose address is not in `known`."""
    table = run.records(["address", "evaluations"])
    rows = zip(table.column("address").to_pylist(), table.column("evaluations").to_pylist(), strict=True)
    return [evaluations for address, evaluations in rows if address not in known]


def refuse_missing(missing: int) -> None:
    """Raise an error if samples are missing.

    Raises:
        InputError: they are.
    """
    if missing:
        raise InputError(
            f"{counted_are(missing, 'sample')} missing: other processes of this launch are gone, or have lost them; "
            "run again"
        )


def refuse_lost(outcome: Outcome) -> None:
    """Raise an error if samples are lost.

    Raises:
        NonFiniteError: they are.
    """
    if outcome.lost:
        raise NonFiniteError(
            f"{counted_are(outcome.lost, 'sample')} lost and all others kept; run again once the cause is mended: "
            f"{outcome.cause}"
        )
