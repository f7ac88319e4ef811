"""The search: stacks are proposed in rounds, made and measured, and what is found out guides the next round.

It keeps nothing on a disk. Proposals follow from the seed and from what was measured, which the run folder has: a search
that was stopped begins anew, finds its images there, and goes on as if it had not been stopped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ...guidance.errors import InputError
from .frontier import Point
from .space import Choices, Space

if TYPE_CHECKING:
    import optuna

ROUND = 8  # proposals between two looks at what was measured; their samples fill batches together
POPULATION = 16
PATIENCE = 30  # proposals for one that is new, after which a small space counts as exhausted

Measure = Callable[[Sequence[str]], Sequence[Point]]
"""Points of some stacks, in their order."""


def check_budget(budget: int) -> None:
    """Refuse a search of nothing.

    Raises:
        InputError: it is.
    """
    if budget < 1:
        raise InputError(f"--budget is the number of stacks to try, 1 at least; got {budget}")


def search(
    space: Space, measure: Measure, metric: str, sign: int, budget: int, seed: int = 0, extra: Iterable[str] = ()
) -> list[Point]:
    """Try stacks: those that are known to be worth it, then what NSGA-II makes of the best so far.

    Args:
        space: of the stacks.
        measure: makes and measures.
        metric: the likeness.
        sign: 1 where more is more alike, -1 where less is.
        budget: how many different stacks, beside the reference, that cost no more than it.
        seed: of the proposals.
        extra: further stacks, which come first and count.

    Returns:
        The reference's point, then those of the stacks tried, in order.

    Raises:
        InputError: the budget is 0; as `measure`.
    """
    check_budget(budget)
    reference = str(space.reference)
    most = space.cost(space.reference)
    (first,) = measure([reference])
    found: dict[str, Point] = {reference: first}
    listed = list(dict.fromkeys(extra))[:budget]
    found |= dict(zip(listed, measure(listed), strict=True)) if listed else {}
    study = _study(seed)
    for chosen in space.informed():
        study.enqueue_trial(chosen)
    choices = {name: _categorical(values) for name, values in space.choices.items()}
    tried, idle = len(found) - 1, 0
    while tried < budget and idle < PATIENCE:
        asked: list[tuple[Any, str]] = []
        fresh: list[str] = []
        while len(fresh) < min(ROUND, budget - tried) and idle < PATIENCE:
            trial = study.ask(choices)
            stack = space.stack(_chosen(trial))
            text = str(stack)
            if space.cost(stack) >= most and text not in found:
                study.tell(trial, state=_failed())
                idle += 1
                continue
            asked.append((trial, text))
            if text in found or text in fresh:
                idle += 1
            else:
                fresh.append(text)
                idle = 0
        if fresh:
            found |= dict(zip(fresh, measure(fresh), strict=True))
            tried += len(fresh)
        for trial, text in asked:
            study.tell(trial, (found[text].cost, -sign * found[text].mean(metric)))
    return list(found.values())


def _study(seed: int) -> optuna.Study:
    try:
        import optuna
    except ImportError:
        raise InputError("tune needs optuna: pip install 'guidestack[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)


def _categorical(values: tuple[Any, ...]) -> Any:
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution(values)


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _chosen(trial: Any) -> Choices:
    return dict(trial.params)
