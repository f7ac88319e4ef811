"""The search: stacks are proposed in rounds, made and measured, and what is found out guides the next round.

It keeps nothing on a disk. Proposals follow from the seed and from what was measured, which the run folder has: a
search that was stopped begins anew, finds its images there, and goes on as if it had not been stopped.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ...guidance.errors import InputError
from .frontier import Point
from .space import Choices, Space

if TYPE_CHECKING:
    import optuna

ROUND = 8  # proposals between two looks at what was measured; their samples fill batches together
POPULATION = 10
CROSSED, SWAPPED, CHANGED = 0.4, 0.15, 2.0
"""Of NSGA-II: share of proposals with two parents, what they take of the second, and choices that change by chance.
Most proposals are a good plan with a letter or two exchanged: there are far more plans than can be measured."""
GENERATION = "NSGAIISampler:generation"  # under which optuna keeps it
PATIENCE = 100  # proposals for one that is new, after which a small space counts as exhausted

Measure = Callable[[Sequence[str]], Sequence[Point]]
"""Points of some stacks, in their order."""


def check_budget(budget: int) -> None:
    """Check that a search may try one stack at least.

    Raises:
        InputError: it is.
    """
    if budget < 1:
        raise InputError(f"--budget is the number of stacks to try, 1 at least; got {budget}")


def check_installed() -> None:
    """Check that optuna is installed.

    Raises:
        InputError: optuna is missing.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError("tune needs optuna: pip install 'guidestack[tune]'")


def search(
    space: Space, measure: Measure, metric: str, sign: int, budget: int, seed: int = 0, extra: Iterable[str] = ()
) -> list[Point]:
    """Try stacks: those that are known to be worth it, then what NSGA-II makes of the best so far.

    Args:
        space: of the stacks.
        measure: makes and measures.
        metric: the likeness.
        sign: 1 where more is more alike, -1 where less is.
        budget: how many different stacks, beside the reference; none that NSGA-II proposes costs more than that.
        seed: of the proposals.
        extra: further stacks, which come first and count.

    Returns:
        The reference's point, then those of the stacks tried, in order.

    Raises:
        InputError: the budget is 0, or optuna is missing; as `measure`.
    """
    check_budget(budget)
    check_installed()
    reference = str(space.reference)
    found: dict[str, Point] = dict(zip([reference], measure([reference]), strict=True))

    def try_all(stacks: Sequence[str]) -> None:
        """As many as the budget has left."""
        fresh = [stack for stack in dict.fromkeys(stacks) if stack not in found][: budget + 1 - len(found)]
        for start in range(0, len(fresh), ROUND):
            some = fresh[start : start + ROUND]
            found.update(zip(some, measure(some), strict=True))

    def objectives(stack: str) -> tuple[float, float]:
        return found[stack].cost, -sign * found[stack].mean(metric)

    try_all(list(extra))
    informed = {str(space.stack(chosen)): chosen for chosen in space.informed()}
    try_all(list(informed))
    known = {stack: chosen for stack, chosen in informed.items() if stack in found}
    study, choices = _study(space, seed, len(known))
    for stack, chosen in known.items():
        study.add_trial(_trial(chosen, choices, objectives(stack)))
    most, idle = space.cost(space.reference), 0
    while len(found) <= budget and idle < PATIENCE:
        asked: list[tuple[optuna.Trial, str]] = []
        fresh: set[str] = set()
        while len(fresh) < min(ROUND, budget + 1 - len(found)) and idle < PATIENCE:
            trial = study.ask(choices)
            proposed = space.stack(trial.params)
            text, cost = str(proposed), space.cost(proposed)
            new = text not in found and text not in fresh
            idle = 0 if new and cost < most else idle + 1
            if new and cost >= most:
                study.tell(trial, state=_failed())
                continue
            asked.append((trial, text))
            if new:
                fresh.add(text)
        try_all([text for _, text in asked])
        for trial, text in asked:
            study.tell(trial, objectives(text))
    return list(found.values())


def _study(space: Space, seed: int, informed: int) -> tuple[optuna.Study, dict[str, Any]]:
    """A study whose sampler begins with so many informed trials, and the distributions of the choices."""
    import optuna
    from optuna.samplers.nsgaii import UniformCrossover

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    choices = {name: optuna.distributions.CategoricalDistribution(values) for name, values in space.choices.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # crossovers are marked as experimental
        sampler = optuna.samplers.NSGAIISampler(
            population_size=max(2, min(POPULATION, informed)),
            mutation_prob=min(1.0, CHANGED / len(choices)),
            crossover=UniformCrossover(SWAPPED),
            crossover_prob=CROSSED,
            seed=seed,
        )
    return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler), choices


def _trial(chosen: Choices, choices: dict[str, Any], values: Sequence[float]) -> Any:
    """A trial of the first generation, which optuna would count those as that it proposed itself only."""
    from optuna.trial import create_trial

    return create_trial(params=chosen, distributions=choices, values=values, system_attrs={GENERATION: 0})


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL
