"""A stack for samplers of the k-diffusion form: a function ``model(x, sigma, **extra) -> denoised``, guided.

k-diffusion and what descends from it have their samplers call a model with samples and one noise level a sample, and
take the clean samples from it. What guides such a model is a function of the same form around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from ..guidance.errors import GuidanceNotAppliedError, InputError, QueryError, warn
from ..guidance.keyed import Keys
from ..guidance.move import check_still
from ..guidance.network import CallableNetwork
from ..guidance.notation.presets import as_stack
from ..guidance.prediction import X0, Level
from ..guidance.query import Query
from ..guidance.report import Report
from ..guidance.rule import Rule, Stack
from ..guidance.run import GuidedRun
from ..guidance.step import Run
from ..samplers.conditions import Conditions
from ..samplers.noise import one_each

Model = Callable[..., Tensor]
"""``model(x, sigma, **extra)``: the clean samples, shaped like x; sigma has shape ``(B,)``."""

ROUNDING = 1e-3
"""Relative; samplers compute their levels in float32, or in half precision."""
CHURN = 2**0.5
"""Samplers that add noise at the beginning of a step begin it above the level of the schedule, by this factor at most
(Karras et al. 2022, Algorithm 2)."""


def as_denoiser(
    stack: Rule | str | Mapping[str, Any],
    model: Model | Mapping[str, Model],
    *,
    conditions: Mapping[str, Any],
    sigmas: Tensor | Sequence[float],
    evaluations: int = 1,
    path: Literal["ve", "flow"] = "ve",
    seeds: Sequence[int] | None = None,
    max_rows: int | None = None,
) -> GuidedDenoiser:
    """Wrap a model of the k-diffusion form so that it samples under a stack, as another function of that form.

    Args:
        stack: a stack, a rule, or the text or mapping of one.
        model: ``model(x, sigma, **extra)`` returning clean samples; or several by name, ``"main"`` the one that
            samples. One that can be perturbed has an attribute ``perturbations`` (see `guidance.network.Denoiser`).
        conditions: the model's arguments beside x and sigma, by the name of the condition, ``"positive"`` at least:
            a mapping from the names of its arguments to tensors, with one row for all samples or one each. Names as in
            `sample`: ``"null"``, ``"negative"`` or ``"negative:0"`` and on, ``"positive:1"`` and on; ``"independent"``
            is a function ``draw(generators)`` that returns arguments of the prompt's form at random.
        sigmas: the sampler's noise levels, N + 1 for N steps, falling, the last one usually 0.
        evaluations: calls that the sampler makes in a step: 1 for Euler, 2 for Heun, DPM-Solver-2 and 2S; the last step
            may have fewer. Rules that decide once a step decide at the first.
        path: the scaling of x. ``"ve"``: ``x = x0 + sigma*eps``; ``"flow"``: ``x = (1 - sigma)*x0 + sigma*eps``.
        seeds: one for each sample, from which random conditions and perturbations are drawn; 0, 1, ... by default.
        max_rows: at most this many rows in one call of the model.

    Returns:
        The guided model, ``denoiser(x, sigma, **extra) -> denoised``, for one run; `GuidedDenoiser.reset` makes it
        ready for another.

    Raises:
        InputError: no ``"positive"`` condition, a grid of levels that does not fall, a rule that re-noises: it needs
            a sampler that takes two predictions, as `sample` does; or one that perturbs (`TSG`) a model that has no
            ``perturbations``.
        StackSyntaxError, RuleError: the text or mapping of the stack is wrong.

    The model's native output is clean samples: a rule whose space is "native" works on these.

    Cost: one call of the model for all conditions whose arguments have the same form, else a call each. Each call of
    the guided model waits once for the device that holds sigma.

    >>> import torch
    >>> def model(x, sigma, mean):
    ...     return (sigma**2 * mean + x) / (1 + sigma**2)  # of data N(mean, 1)
    >>> told = {"positive": {"mean": torch.ones(1)}, "null": {"mean": torch.zeros(1)}}
    >>> denoiser = as_denoiser("cfg(3)", model, conditions=told, sigmas=[1.0, 0.0])
    >>> denoiser(torch.zeros(1), torch.ones(1)), str(denoiser.report).partition(": ")[2]
    (tensor([1.5000]), '1 sample, 1 step, 2 evaluations a sample, 1 network call, 2 rows')
    """
    stack = as_stack(stack)
    if renoising := [rule for rule in stack.parts() if rule.renoises and not isinstance(rule, Stack)]:
        raise InputError(
            f"{renoising[-1]} re-noises with a second prediction, and a sampler of the form model(x, sigma) takes one; "
            "guidestack.sample steps with both"
        )
    check_still(stack, "a sampler of the form model(x, sigma)")
    known = Conditions.of(conditions)
    for name, told in conditions.items():
        if not callable(told) and not isinstance(told, Mapping):
            raise InputError(f"conditions[{name!r}] must be a mapping of arguments, got {type(told).__name__}")
    levels = [float(sigma) for sigma in (sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas)]
    if len(levels) < 2 or any(after >= before for before, after in pairwise(levels)) or levels[-1] < 0:
        raise InputError(f"sigmas must fall from the first to the last, which is 0 or above; got {levels}")
    if path not in ("ve", "flow") or (path == "flow" and levels[0] > 1):
        raise InputError(f"path is 've', or 'flow' with sigmas in [0, 1]; got {path!r} and sigmas from {levels[0]:g}")
    if not isinstance(evaluations, int) or evaluations < 1:
        raise InputError(f"evaluations is the number of calls in a step, 1 at least; got {evaluations!r}")
    models = model if isinstance(model, Mapping) else {"main": model}
    _check_perturbed(stack, models)
    return GuidedDenoiser(stack, models, known, levels, evaluations, path, seeds, max_rows)


def _check_perturbed(stack: Stack, models: Mapping[str, Model]) -> None:
    """Refuse rules that perturb models which do not say that they can be.

    Raises:
        InputError: naming the first.
    """
    for edit in stack.own_pass:
        if edit.kind not in getattr(models.get("main"), "edits", ()):
            raise InputError(
                f"{edit.kind} edits the network's attention, which a model of the form model(x, sigma) does not show; "
                f"give it an attribute edits={{{edit.kind!r}}} and take edits= and carried= in its call, or use "
                "guidestack.guide"
            )
    for rule in stack.parts():
        for query in sorted(rule.asks(), key=str):
            kind, model = query.perturbation and query.perturbation.kind, models.get(query.model)
            if kind and model is not None and kind not in getattr(model, "perturbations", ()):
                raise InputError(
                    f"{rule} perturbs the {kind} embedding of the network, which a model of the form model(x, sigma) "
                    f"does not show; give it an attribute perturbations={{{kind!r}}} and take perturbation= and "
                    "generators= in its call, or use guidestack.guide"
                )


class GuidedDenoiser:
    """A model of the k-diffusion form that samples under a stack; `as_denoiser` makes it.

    Attributes:
        stack: the stack.
        run: the run so far, with its state; None before the first call.
    """

    def __init__(
        self,
        stack: Stack,
        models: Mapping[str, Model],
        conditions: Conditions,
        sigmas: Sequence[float],
        evaluations: int = 1,
        path: Literal["ve", "flow"] = "ve",
        seeds: Sequence[int] | None = None,
        max_rows: int | None = None,
    ) -> None:
        self.stack, self.models, self.conditions, self.sigmas = stack, models, conditions, tuple(sigmas)
        self.evaluations, self.path, self.seeds, self.max_rows = evaluations, path, seeds, max_rows
        self.reset()

    def __repr__(self) -> str:
        return f"as_denoiser({str(self.stack)!r}, {len(self.sigmas) - 1} steps)"

    def reset(self) -> None:
        """Discard the run's state and report, so that the next call begins a new run."""
        self.run: GuidedRun | None = None
        self._calls = 0
        self._above = 0.0

    @property
    def report(self) -> Report | None:
        """The report of the run so far; None before the first call.

        Raises:
            NonFiniteError: NaN or Inf in a sample, which on an accelerator is found only here.
        """
        return self.run.finish() if self.run else None

    def __call__(self, x: Tensor, sigma: Tensor | float, **extra: Any) -> Tensor:
        """The guided clean samples.

        Args:
            x: noisy samples, shape ``(B, ...)``.
            sigma: their level, the same for all: a number, or a tensor of shape ``()`` or ``(B,)``.
            **extra: options for every call of the model. What has rows belongs into `conditions`, under its condition.

        Returns:
            A tensor like x, in its type.

        Raises:
            GuidanceNotAppliedError: sigma is not the schedule's next level, the run is over, or the batch has another
                size.
            NonFiniteError: no sample is finite any more; if some are, a warning names the others.
            QueryError: a condition that the stack asks for is missing, or has another number of rows.
        """
        if tensors := [name for name, value in extra.items() if isinstance(value, Tensor)]:
            raise InputError(
                f"{tensors[0]!r} is a tensor, of which it is not known whether it has rows; give it as an argument of "
                "each of the conditions"
            )
        value = one_level(sigma)
        level = Level.ve(value) if self.path == "ve" else Level.flow(value)
        index, evaluation = self._place(value)
        batch = len(x)
        if self.run is None:
            self.run = GuidedRun(self.stack, self._about(x), self.max_rows)
        elif batch != self.run.run.batch:
            raise GuidanceNotAppliedError(
                f"{batch} samples in a run of {self.run.run.batch}; call reset() before another run"
            )
        rows = {name: self._rows(tree, batch) for name, tree in self.conditions.rows.items()}
        told = replace(self.conditions, rows=rows)
        network = _KNetwork(self.models, value, extra, x, level, told, Keys(self.run.run.seeds, index, evaluation))
        lost = self.run.lost
        estimate = self.run.estimate(network, x, index, level, evaluation)
        if self.run.lost != lost:  # the sampler hands its samples back by itself, and no error could carry them
            warn(str(self.run.error()))
        self._calls += 1
        self._above = value
        return estimate.prediction.denoised.to(x.dtype)

    def _place(self, sigma: float) -> tuple[int, int]:
        """The step and the evaluation of the next call.

        Raises:
            GuidanceNotAppliedError: it is not at `sigma`.
        """
        index, evaluation = divmod(self._calls, self.evaluations)
        steps = len(self.sigmas) - 1
        if index >= steps:
            raise GuidanceNotAppliedError(
                f"{self._calls} calls were made, all of {steps} steps; call reset() before another run, or say how "
                f"many calls the sampler makes in a step: evaluations={self.evaluations} was given"
            )
        if evaluation:
            fits = sigma <= self._above * (1 + ROUNDING)
        else:
            expected = self.sigmas[index]
            near = abs(sigma - expected) <= ROUNDING * expected
            on_grid = any(abs(sigma - other) <= ROUNDING * other for other in self.sigmas)
            fits = near or (not on_grid and expected < sigma <= expected * CHURN * (1 + ROUNDING))
        if not fits:
            raise GuidanceNotAppliedError(
                f"call {self._calls + 1} is at sigma {sigma:g}, and step {index} of the schedule begins at "
                f"{self.sigmas[index]:g}: is this another run (call reset() before it), or does the sampler not make "
                f"evaluations={self.evaluations} calls in a step?"
            )
        return index, evaluation

    def _about(self, x: Tensor) -> Run:
        batch = len(x)
        seeds = one_each(self.seeds, batch)
        negatives, positives = (self.conditions.count(kind, batch) for kind in ("negative", "positive"))
        return Run(tuple(x.shape), x.dtype, x.device, len(self.sigmas) - 1, seeds, negatives, positives)

    @staticmethod
    def _rows(tree: Any, batch: int) -> Any:
        if callable(tree):
            return tree
        return {
            name: value.expand(batch, *value.shape[1:]) if isinstance(value, Tensor) and len(value) == 1 else value
            for name, value in tree.items()
        }


def one_level(sigma: Tensor | float) -> float:
    """Return the noise level of a batch from a number or from one for each sample; waits for the device with them.

    Raises:
        InputError: the samples have different levels.
    """
    values = set(sigma.flatten().tolist()) if isinstance(sigma, Tensor) else {float(sigma)}
    if len(values) != 1:
        raise InputError(f"sigma must be one level for all samples, got {sorted(values)}")
    return float(values.pop())


class _Called:
    """A model of the k-diffusion form as the network function that it stands for."""

    def __init__(self, model: Model, sigma: float, extra: Mapping[str, Any]) -> None:
        self.model, self.sigma, self.extra = model, sigma, extra
        self.perturbations: frozenset[str] = getattr(model, "perturbations", frozenset())

    def __call__(self, x: Tensor, level: Level, conditions: Any, /, **options: Any) -> Tensor:
        return self.model(x, x.new_full((len(x),), self.sigma), **self.extra, **conditions, **options)


class _KNetwork(CallableNetwork):
    """The models, bound to one batch at one level."""

    def __init__(
        self,
        models: Mapping[str, Model],
        sigma: float,
        extra: Mapping[str, Any],
        x: Tensor,
        level: Level,
        conditions: Conditions,
        keys: Keys,
    ) -> None:
        called = {name: _Called(model, sigma, extra) for name, model in models.items()}
        super().__init__(called, x, level, conditions.rows, X0, conditions.aliases, keys)
        self.together = len({_form(tree) for tree in conditions.rows.values() if not callable(tree)}) == 1

    def resolve(self, query: Query) -> Query:
        """The query under the name that the models' conditions have for it.

        Raises:
            QueryError: there is none, and what to give.
        """
        if self.aliases.get(query.condition, query.condition) not in self.conditions:
            wanted = f"conditions[{query.condition!r}] with the arguments that conditions['positive'] has"
            if query.condition == "negative":
                wanted = wanted.replace(" with", ", or conditions['null'] for the empty prompt, with")
            elif query.condition.startswith("independent"):
                wanted = "conditions['independent'], a function draw(generators) that returns such arguments at random"
            given = ", ".join(sorted(map(repr, self.conditions)))
            raise QueryError(f"nothing here answers {str(query)!r}: conditions has {given}; give {wanted}")
        return super().resolve(query)

    def _tree(self, name: str) -> Any:
        tree = super()._tree(name)
        if name.startswith("independent") and _form(tree) != _form(self.trees["positive"]):
            raise QueryError(
                f"{name!r} draws arguments of another form than those of 'positive': {_form(tree)}, expected "
                f"{_form(self.trees['positive'])}"
            )
        return tree


def _form(tree: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the form of a condition's arguments; conditions of the same form can stand in one batch."""
    return tuple(
        (name, tuple(value.shape[1:]), value.dtype) if isinstance(value, Tensor) else (name,)
        for name, value in sorted(tree.items())
    )
