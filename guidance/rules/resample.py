"""Particles with weights: Feynman-Kac correctors (Skreta et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import RuleError, shown
from ..fields import choice, interval, is_number, number, plain, set_field, whole
from ..move import Move
from ..notation.registry import register
from ..objective import Bound, check_text
from ..per_sample import norm
from ..prediction import wide
from ..query import NEGATIVE, POSITIVE, Predictions, Query
from ..steering import check_objectives
from ..step import Estimate, Run, Step
from ..turn import Sight

SKRETA_2025 = """@inproceedings{skreta2025feynman,
  title     = {{Feynman-Kac} Correctors in Diffusion: Annealing, Guidance, and Product of Experts},
  author    = {Skreta, Marta and Akhound-Sadegh, Tara and Ohanesian, Viktor and Bondesan, Roberto
               and Aspuru-Guzik, Al{\\'a}n and Doucet, Arnaud and Brekelmans, Rob and Tong, Alexander
               and Neklyudov, Kirill},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  note      = {arXiv:2503.02819}
}"""
SINGHAL_2025 = """@article{singhal2025general,
  title   = {A General Framework for Inference-time Scaling and Steering of Diffusion Models},
  author  = {Singhal, Raghav and Horvitz, Zachary and Teehan, Ryan and Ren, Mengye and Yu, Zhou and McKeown, Kathleen
             and Ranganath, Rajesh},
  journal = {arXiv preprint arXiv:2501.06848},
  year    = {2025}
}"""
DRAWS = ("systematic", "jumps")
"""How a group is drawn anew."""
GRAIN = 2.0**-24  # of a uniform number in float32


class Drift(NamedTuple):
    r"""What a step with a drift adds to the samples, and what that weighs; in samples over :math:`\alpha`.

    Attributes:
        force: g, so that the samples are moved by its product with the variance of the noise that the step draws.
        mean: of the samples after the step, without the drift.
    """

    force: Tensor
    mean: Tensor


class Weighted(NamedTuple):
    """What `Resample` remembers.

    Attributes:
        log_weights: of each sample since it was last resampled, shape ``(B,)``, float64.
        rewards: what of each sample's reward is in the weights that it has had, shape ``(B,)``, float64, less what the
            last drift added to its log weight, which is counted with the reward that it led to; None without a reward.
        drift: where the last evaluation leads the samples beside the sampler; None where it does not.
    """

    log_weights: Tensor
    rewards: Tensor | None = None
    drift: Drift | None = None


@register(
    "resample",
    references=(SKRETA_2025, SINGHAL_2025),
    example="resample(3, 4)",
)
@dataclass(frozen=True)
class Resample(Move[Weighted]):
    r"""Feynman-Kac corrector: sample in groups of particles, resampled by their weights under a target law.

    The target is a product of laws at each noise level, :math:`\prod_i p_i(x)^{b_i}`: for guidance of scale w the
    powered law :math:`p(x \mid c)^w\, p(x)^{1-w}`. The sampler steps with the noise

    .. math:: \epsilon_S = \sum_i b_i \epsilon_i

    which alone does not sample the target. Each step from a level to the next, with :math:`k = \sigma/\alpha` before
    and :math:`k'` after it, therefore changes a sample's log weight by

    .. math:: \frac{1 - (k'/k)^2}{2} \Big(|\epsilon_S|^2 - \sum_i b_i |\epsilon_i|^2\Big)

    and before the next evaluation the particles of each group are drawn anew by their weights (systematic resampling),
    which then begin at 1 again. For guidance of scale w the bracket is :math:`w (w - 1)\,|\epsilon_c - \epsilon_u|^2`.

    With a `reward` r and its `strength` :math:`\beta` the target at each level is this law times
    :math:`e^{\beta r(\hat x_0(x))}`, with r at the clean sample that the sampler steps with, and a step also changes a
    log weight by what the reward has gained since:

    .. math:: \beta\, r\big(\hat x_0(x')\big) - \beta\, r\big(\hat x_0(x)\big)

    which is exact for steps of any length, needs no gradient of the reward, and ends at :math:`\beta\, r(x_0)`. With
    ``power=1`` the rule leaves the estimate as it is: in ``cfg(4) | resample(8, 1, reward=...)`` it weighs the samples
    of the rules before it.

    With a `drift` d the samples are led along the gradient of the reward too, so that fewer of them are far from where
    the target is. Of :math:`y = x/\alpha` a step that draws the noise of the reverse SDE has the law
    :math:`N(m, s^2)`, with the clean sample :math:`\hat x_0` that the sampler steps with

    .. math:: m = \hat x_0 + \frac{k'^2}{k^2}\,(y - \hat x_0),\qquad s^2 = k'^2\Big(1 - \frac{k'^2}{k^2}\Big),

    and :math:`y' \sim N(m, s^2)` is moved by :math:`s^2 g`, with :math:`g = d\,\beta\,\nabla r(\hat x_0) / (1 + k^2)`;
    :math:`1/(1 + k^2)` is the derivative of the clean sample by y of data of variance 1, and no gradient goes through
    the denoiser. The log weight then changes by the ratio of both laws too,

    .. math:: -\langle g,\ y' - m\rangle - \tfrac12 s^2 |g|^2

    with :math:`y'` before it was moved: whatever d and however long the step, the target is the same.

    **Couples samples**: what becomes of one depends on the others of its group, the only case in guidestack. Sample i
    belongs to the group ``i // particles``, whose samples have one prompt: in a pipeline ``num_images_per_prompt`` is
    a multiple of `particles`. The samples of one group end as near relatives. What generates images, the command line
    and sweeps, therefore draws each image from a group of its own, by the weights, at `particles` times the cost: an
    image depends on its own seed alone, which its first particle has.

    Args:
        particles: samples in a group, at least 2; the batch is a multiple of it.
        power: w, any number up to 1e6 in size; or the exponents themselves, pairs of a query and its :math:`b_i`, which
            need not sum to 1: ``(("positive", 1), ("positive:1", 1))`` is a product of two prompts,
            ``(("positive", 2),)`` one prompt annealed, a negative exponent a negative prompt.
        against: the query that is p(x), where `power` is a number.
        sigma: noise levels sigma/alpha, open below and closed above, at which a step changes weights.
        clamp: the largest change of a log weight in a step, in size, after that of the group's mean is taken off; None
            for no bound. The variance of the changes grows with the number of elements of a sample: latents need it.
        below: particles are drawn anew where the effective sample size of their group is below this share of it, in
            (0, 1]; 1 is always.
        reward: the text of an objective, ``log f``, which is r; "" for none. One that sees noisy samples is asked at x.
        strength: :math:`\beta`, any number up to 1e6 in size.
        drift: d, any number up to 1e6 in size: how far samples are led along the gradient of the reward, which must
            then have one; 0 for weights alone, 1 for about what the target itself has, 1/2 for the paper's. With a
            drift, samplers whose noise is that of the reverse SDE and which do not clip: DDPM, Euler ancestral, and the
            SDE form of DPM-Solver++ of order 1.
        draw: ``"systematic"`` for systematic resampling; ``"jumps"`` for birth and death: with :math:`c_k` the change
            of a log weight by the step less its mean over the group, a particle of :math:`c_k < 0` dies with
            probability :math:`1 - e^{c_k}` and a copy of particle j takes its place, j with probability in proportion
            to :math:`\max(c_j, 0)`. It is the paper's jump process over one step, right in the limit of short steps,
            and lets most particles be.

    Queries: those of `power`: 2 evaluations a step under guidance, as `CFG`. None on top: turns evaluate nothing. The
    reward is evaluated once a step, with its gradient if there is a drift.

    State: log weights and rewards, two numbers for each sample; with a drift two samples more.

    Space: noise. Samplers that evaluate once a step, remember nothing and draw fresh noise in each step: what was
    multiplied would stay the same otherwise.

    Traces: ``ess``, the effective sample size of a sample's group after the step, from 1 to `particles`;
    ``log_weight``, of the samples that the run ended with since they were last drawn; with a reward ``log_f``, r.

    Raises:
        RuleError: when a run begins, the batch is no multiple of `particles`, or a group would mix prompts.

    References:
        Skreta et al., arXiv:2503.02819, Propositions 3.1 to 3.3, of which the bracket is the general case, and their
        resampling. Their image models clamp at 1 or 2. Singhal et al., arXiv:2501.06848, whose potential of differences
        the weights of a reward are. Proposition 3.4 has the drift in the limit of short steps, of a reward of x itself,
        with weights for that limit; here they are ratios of the laws of a step, as in twisted diffusion samplers.

    >>> from guidestack import Resample
    >>> print(Resample(8, 4), sorted(map(str, Resample(8, 4).asks())))
    resample(8, 4) ['negative', 'positive']
    """

    space: ClassVar[Any] = "noise"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"power": 1.0, "strength": 0.0}
    couples: ClassVar[bool] = True

    particles: int
    power: float | tuple[tuple[str, float], ...]
    against: Query | str = NEGATIVE
    sigma: tuple[float, float] = (0.0, math.inf)
    clamp: float | None = None
    below: float = 1.0
    reward: str = ""
    strength: float = 1.0
    draw: str = "systematic"
    drift: float = 0.0

    def __post_init__(self) -> None:
        whole(self, "particles", 2)
        if isinstance(self.power, tuple | list):
            set_field(self, "power", _pairs(self.power))
        else:
            number(self, "power")
        set_field(self, "against", Query.of(self.against))
        interval(self, "sigma", 0.0, math.inf)
        if self.clamp is not None:
            number(self, "clamp", 0.0)
        number(self, "below", 0.0, 1.0)
        if not isinstance(self.reward, str) or self.reward:
            set_field(self, "reward", check_text(self.reward))
        number(self, "strength")
        choice(self, "draw", DRAWS)
        if number(self, "drift") and not self.reward:
            raise RuleError("Resample: drift leads along the gradient of a reward; give one, such as reward='blue'")
        if self.draw == "jumps" and self.below < 1:
            raise RuleError("Resample: births and deaths, draw='jumps', happen at every step; leave below out")

    @property
    def exponents(self) -> dict[Query, float]:
        """The exponent of each query, without those that are 0."""
        if isinstance(self.power, tuple):
            pairs = {Query.of(name): exponent for name, exponent in self.power}
        else:
            pairs = {POSITIVE: self.power, Query.of(self.against): 1 - self.power}
        return {query: exponent for query, exponent in pairs.items() if exponent}

    @property
    def objectives(self) -> tuple[str, ...]:
        """The text of the reward, where there is one."""
        return (self.reward,) if self.reward and self.strength else ()

    @property
    def drifts(self) -> bool:
        """Whether the rule moves samples along the reward's gradient, with weights for the reverse SDE's noise."""
        return bool(self.drift and self.objectives)

    def check_objective(self, objective: Bound) -> None:
        """Check that the reward has a gradient, if the rule moves samples along it.

        Raises:
            RuleError: it has none.
        """
        if self.drifts:
            objective.need_gradient(self)

    @property
    def off(self) -> bool:
        """Whether the rule does nothing: whether the target is the law of the prompt."""
        return not (self.guides or self.objectives)

    @property
    def guides(self) -> bool:
        """Whether the rule changes the sampler's prediction: whether the exponents are not those of the prompt."""
        return self.exponents != {POSITIVE: 1.0}

    @property
    def stands_last(self) -> bool:
        """Whether the rule weighs the finished estimate of the rules before it, which none may change after it."""
        return not self.guides

    @property
    def takes_turns(self) -> bool:
        """Whether the rule resamples particles: whether it is not off."""
        return not self.off

    @property
    def per_image(self) -> int:
        """How many samples are made for one image: the particles of a group, one of which is kept."""
        return 1 if self.off else self.particles

    @property
    def contrast(self) -> Query | None:
        """The query that is p(x) if `power` is a number, else None."""
        return None if isinstance(self.power, tuple) else Query.of(self.against)

    def init(self, run: Run) -> Weighted:
        """Return the state before the first step, in which all particles have weight 1.

        Raises:
            RuleError: the batch is no multiple of `particles`, or a group would mix prompts.
            InputError: there is no such reward.
            UnsupportedError: the loop hands rules no objectives.
        """
        planned = run.identity is None
        if self.objectives:
            check_objectives(self, run)
        if not planned and not self.off:
            if run.batch % self.particles:
                raise RuleError(
                    f"{self}: a batch of {run.batch} samples does not divide into groups of {self.particles}; make "
                    f"{math.ceil(run.batch / self.particles) * self.particles}"
                )
            groups = [run.told[first : first + self.particles] for first in range(0, run.batch, self.particles)]
            if mixed := [place for place, group in enumerate(groups) if len(set(group)) > 1]:
                raise RuleError(
                    f"{self}: the samples of a group have one prompt, and those from {mixed[0] * self.particles} on "
                    f"have several; give num_images_per_prompt={self.particles} or a multiple of it"
                )
        ones = torch.zeros(run.batch, dtype=torch.float64, device=run.device)
        return Weighted(ones, ones if self.objectives else None)

    def asks(self) -> frozenset[Query]:
        """The queries with an exponent; none for the prompt alone."""
        return frozenset(self.exponents) if self.guides else frozenset()

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: Weighted
    ) -> tuple[Estimate, Weighted]:
        """Return the weighted sum of noises as the estimate, and the weights after the coming step."""
        if self.off:
            return estimate, state
        change = torch.zeros_like(state.log_weights)
        if self.guides:
            noises = [(b, predictions[query].noise) for query, b in self.exponents.items()]
            total = noises[0][0] * noises[0][1]
            for b, noise in noises[1:]:
                total = total + b * noise
            bracket = _square(total) - sum(b * _square(noise) for b, noise in noises)
            change = self._rate(step) * bracket
            estimate = estimate.replace("noise", total)
        rewards, drift, traces = state.rewards, None, {}
        if rewards is not None and step.run.objectives is not None:
            traces["log_f"], slope = self._reward(estimate, step)
            gained = self.strength * traces["log_f"].double()
            if self._counts(step):
                change, rewards = change + gained - rewards, gained
                drift = None if slope is None else self._drift(estimate, slope, step)
        weights = state.log_weights + self._clamped(change)
        if self._grouped(weights):
            traces["ess"] = self._size(weights).repeat_interleave(self.particles)
        traced = Estimate(estimate.prediction, estimate.renoise, {**estimate.traces, **traces, "log_weight": weights})
        return traced, Weighted(weights, rewards, drift)

    def _reward(self, estimate: Estimate, step: Step) -> tuple[Tensor, Tensor | None]:
        """Return the reward r of each sample, shape ``(B,)``, and with a drift its gradient by x over alpha."""
        assert step.run.objectives is not None  # else nobody asks
        reward, level = step.run.objectives.find(self.reward), step.level
        noisy = reward.space == "noisy"
        seen = (estimate.prediction.x, level) if noisy else (estimate.read("denoised"),)
        if not self.drifts:
            return reward(*seen), None
        value, slope = reward.gradient(*seen)
        return value, slope * (level.alpha if noisy else 1 / (1 + level.k_sigma**2))

    def _drift(self, estimate: Estimate, slope: Tensor, step: Step) -> Drift | None:
        """Where the coming step leads samples beside the sampler; None at the last one, which draws no noise."""
        if step.after is None or not step.after.sigma:
            return None
        told, level = estimate.prediction, step.level
        kept = (step.after.k_sigma / level.k_sigma) ** 2
        # Of samples x, not y = x / alpha, since a run may begin at alpha = 0.
        held = step.after.k_sigma**2 * level.alpha / level.sigma**2 * told.x
        noise = estimate.renoise or told
        mean = told.denoised - kept * noise.denoised + held
        return Drift((self.drift * self.strength * slope).to(mean.dtype), mean)

    def _counts(self, step: Step) -> bool:
        """Whether a step changes weights."""
        low, high = self.sigma
        return low < step.level.k_sigma <= high

    def _rate(self, step: Step) -> float:
        """Return the factor of the bracket in the change of the log weights."""
        here, after = step.level.k_sigma, step.after.k_sigma if step.after else 0.0
        return 0.5 * (1 - (after / here) ** 2) if self._counts(step) else 0.0

    def _clamped(self, change: Tensor) -> Tensor:
        """The change of the log weights by the step, shape ``(B,)``, within its bounds."""
        if self.clamp is None or not self._grouped(change):
            return change
        groups = change.reshape(-1, self.particles)
        return (groups - groups.mean(1, keepdim=True)).clamp(-self.clamp, self.clamp).flatten()

    def _grouped(self, value: Tensor) -> bool:
        """Whether the batch has groups; that of a plan has none."""
        return len(value) % self.particles == 0

    def _size(self, weights: Tensor) -> Tensor:
        """The effective sample size of each group."""
        shares = weights.reshape(-1, self.particles).softmax(1)
        return 1 / shares.square().sum(1)

    def turns(self, step: Step, state: Weighted) -> int:
        """Return the number of turns: one between two evaluations, in which nothing is evaluated."""
        return int(not self.off and step.before is not None and self._grouped(state.log_weights))

    def turn(self, x: Tensor, sight: Sight, step: Step, state: Weighted) -> tuple[Tensor, Weighted]:
        """Resample the particles of each group, set their weights to 1, and move them along the reward's gradient."""
        groups = torch.arange(len(x), device=x.device).reshape(-1, self.particles)
        if self.draw == "jumps":
            chosen = jumps(state.log_weights.reshape(-1, self.particles), *self._uniform(x, sight, 1, 2).unbind(-1))
        else:
            shares = state.log_weights.reshape(-1, self.particles).softmax(1)
            chosen = systematic(shares, self._uniform(x, sight, self.particles, 1).flatten())
        kept = torch.zeros_like(state.log_weights)
        if self.below < 1:
            drawn = self._size(state.log_weights) < self.below * self.particles
            chosen = torch.where(drawn[:, None], chosen, groups - groups[:, :1])
            kept = state.log_weights.where(~drawn.repeat_interleave(self.particles), 0.0)
        rows = (chosen + groups[:, :1]).flatten()
        x, rewards = x[rows], None if state.rewards is None else state.rewards[rows]
        if state.drift is None or rewards is None:
            return x, Weighted(kept, rewards)
        assert step.before is not None  # a drift is of a step that was taken
        force, mean = (one[rows].to(wide(x.dtype)) for one in state.drift)
        variance = step.level.k_sigma**2 * (1 - (step.level.k_sigma / step.before.k_sigma) ** 2)
        ratio = -(force * (x / step.level.alpha - mean)).flatten(1).double().sum(1) - variance / 2 * _square(force)
        return x + step.level.alpha * variance * force, Weighted(kept, rewards - ratio)

    def _uniform(self, x: Tensor, sight: Sight, every: int, count: int) -> Tensor:
        """`count` uniform numbers in (0, 1) of each group's sample out of `every`, ``(G, particles/every, count)``."""
        generators = sight.keys.generators(range(0, len(x), every), "resample")
        drawn = torch.stack([torch.rand((count,), generator=one, dtype=torch.float32) for one in generators])
        drawn = (drawn.double() + GRAIN / 2).to(x.device, non_blocking=True)
        return drawn.reshape(-1, self.particles // every, count)


def jumps(weights: Tensor, death: Tensor, birth: Tensor) -> Tensor:
    """Birth and death: which particle each place of a group gets.

    Args:
        weights: log weights of each group, shape ``(G, K)``.
        death: uniform numbers in (0, 1), shape ``(G, K)``, that decide who dies.
        birth: likewise, that decide who takes the place.

    Returns:
        Indices in a group, shape ``(G, K)``.
    """
    away = weights - weights.mean(1, keepdim=True)
    dies = death < -torch.expm1(away.clamp(max=0.0))
    gains = away.clamp(min=0.0).cumsum(1)
    parents = torch.searchsorted(gains, birth * gains[:, -1:], right=True).clamp_(max=weights.shape[1] - 1)
    return torch.where(dies, parents, torch.arange(weights.shape[1], device=weights.device))


def systematic(shares: Tensor, start: Tensor) -> Tensor:
    """Systematic resampling: which particle each place of a group gets.

    Args:
        shares: the weights of each group, shape ``(G, K)``, each row of sum 1.
        start: a uniform number in (0, 1) for each group, shape ``(G,)``.

    Returns:
        Indices in a group, shape ``(G, K)``, rising: particle k fills ``K * share`` places, rounded up or down.
    """
    count = shares.shape[1]
    places = (torch.arange(count, device=shares.device) + start[:, None]) / count
    return torch.searchsorted(shares.cumsum(1), places, right=True).clamp_(max=count - 1)


def _square(value: Tensor) -> Tensor:
    """The squared length of each sample, shape ``(B,)``, in float64."""
    return norm(value.double()).square().flatten()


def _pairs(value: Any) -> tuple[tuple[str, float], ...]:
    """Exponents by the texts of their queries.

    Raises:
        RuleError: they are none.
    """
    pairs = [plain(one) for one in value]
    good = all(isinstance(one, tuple | list) and len(one) == 2 and is_number(plain(one[1])) for one in pairs)
    if not pairs or not good:
        raise RuleError(
            "Resample: power is a number, or pairs of a query and its exponent, such as (('positive', 1), "
            f"('positive:1', 1)); got {shown(value)}"
        )
    found = [(str(Query.of(one[0])), float(plain(one[1]))) for one in pairs]
    if len({name for name, _ in found}) < len(found):
        raise RuleError(f"Resample: power has a query twice; got {shown(value)}")
    return tuple(found)
