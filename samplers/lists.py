"""Lists of noise levels or timesteps, written after a sampler's name: published ones by name, or the user's numbers."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..guidance.errors import InputError, nearest, shown
from .levels import option

END = 0.0291671582
"""The lowest noise level of Stable Diffusion's schedule, to which the published lists go on."""
LISTS: Mapping[str, tuple[float, ...]] = {
    # Align Your Steps, Sabour et al. 2024 (arXiv:2404.14507): the authors' lists for 10 steps, as diffusers has them.
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, END),
    "ays-xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, END),
    # GITS, Chen et al. 2024 (arXiv:2405.11326), Stable Diffusion 1.5, coefficient 1.2: the authors' list for 10 steps.
    "gits": (
        14.61464119, 5.85520077, 2.84484982, 1.67050016, 1.08895338, 0.74807048, 0.50118381, 0.32104823, 0.19894916,
        0.09824532, END,
    ),
}  # fmt: skip
"""Noise levels sigma/alpha by name: of each step, and the one behind the last, which is replaced by 0."""
KINDS = ("sigmas", "timesteps")
LONGEST = 1000  # steps
FROM_0_TO_1 = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
"""What these are given as sigmas are places on a curve of their own."""


@dataclass(frozen=True)
class Levels:
    """A list of noise levels or timesteps that is given after a sampler's name.

    Args:
        kind: what the numbers are.
        values: one for each step, falling.
        name: the name of a published list, which is interpolated to any number of steps; "" for the user's own list.
    """

    kind: Literal["sigmas", "timesteps"]
    values: tuple[float, ...]
    name: str = ""

    def __str__(self) -> str:
        return self.name or f"{self.kind}={','.join(f'{value:.10g}' for value in self.values)}"

    def of(self, steps: int) -> tuple[float, ...]:
        """Return the numbers of a run of `steps` steps; those of a published list are interpolated in their logarithms.

        Raises:
            InputError: a user's own list has another number of steps.
        """
        if not self.name:
            if len(self.values) != steps:
                raise InputError(
                    f"{len(self.values)} {self.kind} are for as many steps, and this run has {steps}; give steps "
                    f"{len(self.values)}"
                )
            return self.values
        logs = [math.log(value) for value in self.values]
        found = []
        for index in range(steps):
            place = index * (len(logs) - 1) / steps
            below = int(place)
            found.append(math.exp(logs[below] + (place - below) * (logs[below + 1] - logs[below])))
        return tuple(found)


def read_levels(text: str) -> Levels:
    """Read what follows the ``@`` in a sampler's name: the name of a list, ``sigmas=...`` or ``timesteps=...``.

    Raises:
        InputError: another text, or numbers that do not fall.
    """
    name = re.sub(r"[\s_]+", "-", text.strip().lower())
    if name in LISTS:
        return Levels("sigmas", LISTS[name], name)
    kind, equals, numbers = text.strip().partition("=")
    if kind not in KINDS or not equals:
        raise InputError(
            f"behind a sampler's @ stands {', '.join(LISTS)}, sigmas=... or timesteps=...; got {shown(text)}"
            f"{nearest(name, LISTS)}"
        )
    try:
        values = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        values = ()
    return checked(kind, values, numbers)


def checked(kind: str, values: Sequence[float], given: object = None) -> Levels:
    """Check a user's own list of numbers and return it.

    Raises:
        InputError: the numbers do not fall, are too many, or are no sigmas or timesteps.
    """
    numbers = tuple(values)
    if kind == "sigmas" and len(numbers) > 1 and numbers[-1] == 0:
        numbers = numbers[:-1]  # where every run ends
    fits = 0 < len(numbers) <= LONGEST and math.inf > numbers[0] >= numbers[-1]
    fits &= all(one > other for one, other in itertools.pairwise(numbers))
    if kind == "sigmas":
        fits &= all(one > 0 for one in numbers)
    else:
        fits &= all(one >= 0 and float(one).is_integer() for one in numbers)
    if not fits:
        expected = "numbers above 0" if kind == "sigmas" else "whole numbers from 0"
        raise InputError(
            f"{kind} are {expected}, one for each step, each smaller than the one before, at most {LONGEST}; got "
            f"{shown(values if given is None else given)}"
        )
    return Levels(kind, numbers)  # type: ignore[arg-type]  # one of KINDS


def takes(cls: type) -> tuple[str, ...]:
    """Which kinds of lists a scheduler class takes as they are."""
    if cls.__name__ in FROM_0_TO_1:
        return ()
    return tuple(kind for kind in KINDS if kind in inspect.signature(cls.set_timesteps).parameters)  # type: ignore[attr-defined]


def arguments(scheduler: Any, levels: Levels, steps: int) -> dict[str, list[float]]:
    """Return the arguments that give a list to `set_timesteps`, or to a pipeline that passes them on.

    Args:
        scheduler: a diffusers scheduler.
        levels: the list.
        steps: of the run.

    Raises:
        InputError: the scheduler takes no such list, or the list is for another number of steps.
    """
    name, kinds = type(scheduler).__name__, takes(type(scheduler))
    flow = name.startswith("FlowMatch") or bool(option(scheduler, "use_flow_sigmas"))
    values = levels.of(steps)
    if levels.kind == "sigmas" and flow and values[0] > 1:
        raise InputError(f"{levels} begins at {values[0]:g}, and the levels of {name} at 1: it is not for flow models")
    if levels.kind in kinds and not (levels.kind == "sigmas" and name == "UniPCMultistepScheduler" and not flow):
        if levels.kind == "timesteps":
            return {"timesteps": [int(value) for value in values]}
        return {"sigmas": [*values, 0.0] if name == "EulerDiscreteScheduler" else list(values)}
    if levels.kind == "sigmas" and "timesteps" in kinds and hasattr(scheduler, "alphas_cumprod") and not flow:
        return {"timesteps": _timesteps(scheduler, values)}
    raise InputError(f"{name} takes no {levels.kind}, and {levels} cannot be used with it; euler and dpm++2m take both")


def _timesteps(scheduler: Any, sigmas: Sequence[float]) -> list[float]:
    """The training steps whose noise levels are nearest, none of them twice.

    Raises:
        InputError: there are not as many.
    """
    table = [0.5 * math.log((1 - one) / one) for one in scheduler.alphas_cumprod.tolist()]
    if len(sigmas) > len(table):
        raise InputError(f"{len(sigmas)} steps are more than the {len(table)} of the training")
    found: list[float] = []
    for place, sigma in enumerate(sigmas):
        away = [abs(one - math.log(sigma)) for one in table]
        last = found[-1] if found else len(table)
        # Below the last, and with one left for each to come.
        found.append(max(min(away.index(min(away)), last - 1), len(sigmas) - 1 - place))
    return found
