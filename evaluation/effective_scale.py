r"""How hard a run was guided: the effective scale of every sample at every step, at no cost in network evaluations.

With D the clean sample that an answer implies, c the prompt's answer, u what the rule guides away from, and
:math:`\tilde D` what the sampler is told, a step's guided update and its direction are

.. math::
    g = \tilde D - D_c,\qquad d = D_c - D_u

and what is measured is

.. math::
    w_{\mathrm{eff}} = 1 + \frac{\langle g, d\rangle}{\langle d, d\rangle},\qquad
    \mathrm{across} = \frac{\lVert g - (w_{\mathrm{eff}} - 1)\, d\rVert}{\lVert d\rVert},

both the same in every space, since at one x all differences of two answers are converted by one factor. Classifier-free
guidance of scale w has :math:`w_{\mathrm{eff}} = w` and nothing across, at every step.

GA-Eval (Guidance Matters, arXiv:2602.22570) takes the length instead of the component: what a method adds to u, in
lengths of d,

.. math::
    w_{\mathrm{ga}} = \frac{\lVert \tilde D - D_u\rVert}{\lVert d\rVert}
        = \sqrt{w_{\mathrm{eff}}^2 + \mathrm{across}^2},

so that what is across counts as strength. It is measured beside, as ``ga_scale``.

What u is:

* the answer to the rule's `contrast`; of a stack, that of the first rule that leads the sample at this step. For ICG it
  is the random condition's, for TSG that of the perturbed network, for Perp-Neg that of the empty prompt: the direction
  is the rule's own, and scales along different directions are not the same thing.
* of LinearAG at an estimated step the estimate.
* nothing where no rule leads the sample at this step: a window, a sample that Adaptive Guidance has stopped, scale 1,
  the unguided model. Both scales are then 1 and nothing is across; if the estimate is another one than the
  prompt's all the same, there is no direction to measure it along, and all are NaN, as they are where d = 0 and at a
  step that evaluates not even the prompt.

A rule that re-noises with another prediction R than it jumps to (CFG++) is measured by what the step amounts to. From
noise level k = sigma/alpha to k' a first-order deterministic step takes D + R to

.. math:: x' = \alpha' D + \sigma' \epsilon_R,\qquad\text{as it would take}\quad
    \tilde D = R + (D - R)\, \frac{k}{k - k'}

told alone. With R = u that is :math:`\lambda k/(k - k')`, the scale that `CFGPlusPlus.cfg_scale` gives, and what the
paper compares with CFG: large early, :math:`\lambda` in a last step to k' = 0. It is used for every sampler, k and k'
being the levels between which the step leads; for ancestral and multistep solvers it is a convention. The rule's own
scale, of D alone, is the trace ``jump_scale``. NaN where k' is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..guidance.observe import Seen
from ..guidance.per_sample import dot, norm, ratio
from ..guidance.prediction import X0, Level, Prediction, weights, wide
from ..guidance.query import POSITIVE
from ..guidance.report import Report

ROUNDINGS = 8  # an update of less than so many roundings of the arithmetic is no update

Floats = NDArray[np.float64]


def strength(seen: Seen) -> Mapping[str, Tensor]:
    """Measure one evaluation; to be given as ``observe``.

    Returns:
        One number a sample, shape ``(B,)``, on the samples' device: ``effective_scale``, ``across``, ``ga_scale``,
        ``guided`` (1 or 0: whether the estimate is another one than the prompt's), ``cosine`` of the noise of c and u,
        ``prompt_norm``, ``contrast_norm``, ``update_norm`` (Euclidean norms of D_c, d and g), and ``jump_scale`` if the
        stack re-noises. NaN where it has no meaning.

    Cost: a few passes over the samples; no network evaluation.
    """
    prompt = seen.predictions[POSITIVE]
    computed = wide(prompt.native.dtype)
    c = _plain(prompt, computed)
    led = seen.stack.away(seen.predictions, seen.step, seen.state)
    u, known = prompt, torch.zeros(len(c), dtype=torch.bool)
    if led is not None:
        u, known = led[0], torch.ones(len(c), dtype=torch.bool) if led[1] is None else led[1]
    known = known.to(c.device, non_blocking=True)
    d = c - _plain(u, computed)
    jump = _plain(seen.estimate.prediction, computed) - c
    g = jump
    if seen.estimate.renoise is not None:
        back = _plain(seen.estimate.renoise, computed) - c
        g = back + (jump - back) * _lever(seen)
    length = norm(d).square()
    along = ratio(dot(g, d), length)
    size, rounding = norm(g), ROUNDINGS * torch.finfo(computed).eps * norm(c)
    # In the direction's terms where there is one; nothing where nothing was done; else there is nothing to say.
    has = known.reshape(length.shape) & (length > 0)
    still = ~known.reshape(length.shape) & (size <= rounding)
    nan = torch.full_like(length, torch.nan)
    across = ratio(norm(torch.addcmul(g, d, along, value=-1)), length.sqrt())
    found = {
        "effective_scale": torch.where(has, 1 + along, torch.where(still, torch.ones_like(nan), nan)),
        "across": torch.where(has, across, torch.where(still, torch.zeros_like(nan), nan)),
        "ga_scale": torch.where(has, ratio(norm(g + d), length.sqrt()), torch.where(still, torch.ones_like(nan), nan)),
        "guided": torch.where(size.isnan(), nan, (size > rounding).to(computed)),
        "cosine": torch.where(has, _cosine(prompt.noise, u.noise), nan),
    }
    clean = abs(weights(prompt.level, prompt.parameterization, X0)[1])
    found |= {"prompt_norm": norm(prompt.denoised), "update_norm": size * clean}
    found["contrast_norm"] = torch.where(known.reshape(length.shape), length.sqrt() * clean, nan)
    if seen.estimate.renoise is not None:
        found["jump_scale"] = torch.where(has, 1 + ratio(dot(jump, d), length), nan)
    return {name: value.flatten() for name, value in found.items()}


def _plain(prediction: Prediction, dtype: torch.dtype) -> Tensor:
    return prediction.native.detach().to(dtype)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return ratio(dot(a, b), norm(a) * norm(b))


def _lever(seen: Seen) -> float:
    """The factor k / (k - k') of the module's docstring."""
    begins = seen.step.step_level or seen.step.level
    return lever(begins, seen.after) if seen.after is not None else float("nan")


def lever(begins: Level, ends: Level) -> float:
    """How much further than the prediction it jumps to a step leads that re-noises with another: ``k / (k - k')``.

    >>> lever(Level.ve(2.0), Level.ve(1.5)), lever(Level.ve(2.0), Level.ve(0.0))
    (4.0, 1.0)
    """
    # alpha' k/(k - k') of the levels themselves, which are finite at pure noise, where k is not
    difference = begins.sigma * ends.alpha - ends.sigma * begins.alpha
    return begins.sigma * ends.alpha / difference if difference else float("nan")


@dataclass(frozen=True, eq=False)
class Traces:
    """What `strength` and the rules said of a run, by sample and step.

    Attributes:
        values: by name an array of shape ``(B, steps)``; of a step with several evaluations their mean. Beside those of
            `strength` there are ``evaluations``, the network evaluations of a sample at a step, and what rules report,
            as ``rule.NAME``.
        guided_steps: at how many steps each sample was guided, ``(B,)``.
    """

    values: Mapping[str, Floats]
    guided_steps: NDArray[np.int64]

    @property
    def effective_scale(self) -> Floats:
        """Mean over the steps that have an effective scale, ``(B,)``; NaN where none has."""
        return mean(self.values["effective_scale"])

    @property
    def across(self) -> Floats:
        """Mean over the steps of what is across the direction, ``(B,)``; NaN where no step has a direction."""
        return mean(self.values["across"])

    @property
    def ga_scale(self) -> Floats:
        """Mean over the steps of GA-Eval's scale, ``(B,)``; NaN where no step has one."""
        return mean(self.values["ga_scale"])

    def sample(self, place: int) -> dict[str, Floats]:
        """The traces of one sample by name, each of shape ``(steps,)``."""
        return {name: rows[place] for name, rows in self.values.items()}


def gathered(report: Report) -> Traces:
    """The traces of a run that was observed with `strength`. Waits for the device that holds them, once.

    Raises:
        ValueError: it was not.
    """
    if not all(record.observed for record in report.steps):
        raise ValueError(f"nobody observed this run of {report.stack}: guide(pipe, stack, observe=strength)")
    steps = sorted({record.index for record in report.steps})
    columns = {index: place for place, index in enumerate(steps)}
    evaluations = np.zeros((report.batch, len(steps)))
    pending: list[tuple[str, int, Tensor]] = []
    for record in report.steps:
        column = columns[record.index]
        evaluations[:, column] += record.evaluations(report.batch)
        pending += [(name, column, value) for name, value in record.observed.items()]
        pending += [(f"rule.{name}", column, value) for name, value in record.traces.items()]
    values: dict[str, Floats] = {}
    if pending:
        rows = torch.stack([value.detach().float() for _, _, value in pending]).cpu().numpy().astype(np.float64)
        each: dict[str, dict[int, list[Any]]] = {}
        for (name, column, _), row in zip(pending, rows, strict=True):
            each.setdefault(name, {}).setdefault(column, []).append(row)
        for name, found in each.items():
            values[name] = np.full((report.batch, len(steps)), np.nan)
            for column, several in found.items():
                values[name][:, column] = mean(np.stack(several, 1))
    values["evaluations"] = evaluations
    return Traces(values, (values["guided"] > 0).sum(1))


def mean(rows: Floats) -> Floats:
    """The mean of each row over its numbers that are none NaN; NaN where all are."""
    count = (~np.isnan(rows)).sum(1)
    total = np.nansum(rows, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
