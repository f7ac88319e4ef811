"""A stack on a model of ComfyUI: what a sampler that runs on the model does in place of its own guidance.

ComfyUI batches conditions by itself, with their areas, masks, ControlNets and hooks, and returns clean samples. The
stack says which conditions are evaluated at a step, for which samples, and what is made of them.

Written from the interface of ComfyUI 0.3.64. Nothing of ComfyUI is imported before a sampler runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...guidance.errors import InputError, nearest, shown, warn
from ...guidance.notation.presets import load_preset, name_in, names
from ...guidance.notation.text import PRESET, parse
from ...guidance.observe import Seen
from ...guidance.prediction import FLOW, X0, Level
from ...guidance.query import ANY, POSITIVE, Network, Query, Request, sent
from ...guidance.report import Report
from ...guidance.rule import Stack, remarks
from ...guidance.run import GuidedRun
from ...guidance.step import Estimate, Run
from ...samplers.conditions import Conditions
from ..denoiser import one_level
from ..ended import remark

KEY = "guidestack"
"""What ComfyUI files the stack of a model and its weak model under."""
SAMPLING = "sampler_sample"
"""ComfyUI's name for the place around a sampler, where conditions are processed and noise is not yet scaled."""
ROUNDING = 1e-5
"""Relative; samplers compute their levels in float32."""
REPLACED = ("sampler_cfg_function", "sampler_pre_cfg_function")
"""Where other nodes put a guidance of their own, or change the predictions that it is made of."""
AFTER = "sampler_post_cfg_function"
"""The key under which nodes and samplers read the estimate; the CFG++ samplers read what they re-noise with there."""
INPUTS = {
    **{f"negative:{number - 1}": f"negative_{number}" for number in (2, 3, 4)},
    "positive:1": "positive_2",
}
"""The node's inputs of further prompts, by the conditions that rules ask for."""


def readable(text: str) -> Stack:
    """The stack of a workflow's text. A workflow is somebody else's: it names presets of guidestack's and no files.

    Raises:
        InputError: it names something else, or ComfyUI cannot carry the stack.
        StackSyntaxError, RuleError: it is no stack.
    """
    name = name_in(text) if isinstance(text, str) else None
    if name is not None and name not in names():
        raise InputError(
            f"a workflow takes the presets that come with guidestack and reads no files; got {shown(PRESET + name)}"
            f"{nearest(name, names())}"
        )
    stack = parse(text) if name is None else load_preset(name)
    if reason := uncarried(stack):
        raise InputError(f"ComfyUI cannot carry {stack}: {reason}")
    return stack


def uncarried(stack: Stack) -> str:
    """Why a sampler of ComfyUI cannot carry `stack`, naming the rule; "" where it can."""
    for rule in stack.parts():
        if isinstance(rule, Stack):
            continue
        if outside := [one.path for one in rule.files().values() if not one.bundled]:
            return f"{rule} reads the file {shown(str(outside[0]))}, and a workflow names no files"
        if rule.needs_identity:
            return f"{rule} is fitted to a model and a scheduler, and ComfyUI does not say which ones it runs"
        if rule.guides_history:
            return f"{rule} sets a difference of second order, which ComfyUI's samplers set; leave second_order out"
        if rule.takes_turns:
            return f"{rule} evaluates and moves samples between two steps, for which ComfyUI's samplers leave no room"
        if rule.own_pass:
            return f"{rule} edits the network's attention, which ComfyUI does not show"
        for query in sorted(rule.asks(), key=str):
            if query.perturbation:
                return f"{rule} perturbs the network ({query.perturbation.kind}), which ComfyUI does not show"
            if query.grad:
                return f"{rule} asks for gradients, and ComfyUI's samplers compute none"
            if query.condition.startswith("independent"):
                return f"{rule} draws random conditions, and ComfyUI encodes none while a sampler runs; try cfg"
            if query.model not in ("main", "weak"):
                return f"{rule} asks the network {query.model!r}; the second network of the nodes is called 'weak'"
    return ""


def guiding(model: Any) -> StackWrapper | None:
    """The stack that a MODEL carries; None where it carries none."""
    found = model.get_wrappers(SAMPLING, KEY)
    return found[0] if found else None


def carrying(model: Any, stack: Stack, weak: Any = None) -> Any:
    """A copy of a MODEL that carries a stack.

    Args:
        model: ComfyUI's MODEL; stays as it is.
        stack: the stack, of `readable`.
        weak: the MODEL that answers queries of the network "weak"; None for none.

    Raises:
        InputError: the MODEL carries a stack already, or the stack asks for a weak one and there is none, or reversed.
    """
    if before := guiding(model):
        raise InputError(f"this MODEL carries the stack {before.stack} already; give the node the MODEL from before it")
    asks = [query for query in stack.asks() if query.model == "weak"]
    if bool(asks) != (weak is not None):
        of = f"asks for {str(asks[0])!r}: link a weak MODEL" if asks else "asks for no weak MODEL: unlink it"
        raise InputError(f"{stack} {of}")
    for one in remarks(stack):
        warn(one)
    carried = model.clone()
    if weak is not None:
        if weak.model is model.model:
            raise InputError(
                "the weak MODEL is the same network with other patches, and ComfyUI has one copy of it in memory; load "
                "the checkpoint by a second loader node"
            )
        carried.set_additional_models(KEY, [weak])
    carried.add_wrapper_with_key(SAMPLING, KEY, StackWrapper(stack, weak))
    return carried


def answering(stack: Stack, given: Iterable[str]) -> Conditions:
    """The conditions that a guider has, each with ComfyUI's name for it.

    Raises:
        InputError: one that the stack may ask for is missing, and which input takes it.
    """
    # A single negative is called "negative", and one of several by its number.
    several = "negative:1" in given
    conditions = Conditions.of({"negative:0" if several and host == "negative" else host: host for host in given})
    for query in sorted(stack.asks(), key=str):
        name = query.condition
        if not name.endswith(ANY) and conditions.aliases.get(name, name) not in conditions.rows:
            name = "negative" if name == "negative:0" else name
            raise InputError(
                f"{stack} asks for {name!r}, and the graph has {', '.join(sorted(conditions.rows))}; link the input "
                f"{INPUTS.get(name, name)} of Guidestack Guider"
            )
    return conditions


class StackWrapper:
    """What ComfyUI calls around a sampler on a MODEL that carries a stack.

    Attributes:
        stack: the stack.
        report: the account of the last run, up to where it got; None before the first.
    """

    def __init__(self, stack: Stack, weak: Any = None) -> None:
        self.stack, self.weak = stack, weak
        self.report: Report | None = None

    def __call__(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: Mapping[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Run the sampler with the stack in the place of the guider's own guidance.

        Raises:
            InputError: something else in the graph guides, or a condition is missing.
            GuidestackError: as `GuidedRun`.
        """
        import comfy.samplers

        self._check(guider, comfy.samplers.CFGGuider)
        models = {"main": _Model(guider.inner_model, guider.conds)}
        if self.weak is not None:
            raw = {name: [dict(one) for one in conds] for name, conds in guider.original_conds.items()}
            conds = comfy.samplers.process_conds(
                self.weak.model, noise, raw, noise.device, latent_image, denoise_mask, extra_args.get("seed")
            )
            models["weak"] = _Model(self.weak.model, conds, self.weak.model_options)
        run = _Sampling(self.stack, guider, models, sigmas, noise, extra_args.get("seed"))
        self.report = run.guided.report
        if self.weak is not None:
            self.weak.pre_run()
        guider.predict_noise = run.predict_noise  # innermost: what other nodes wrap around it stays in force
        try:
            samples: Tensor = executor(
                guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs
            )
        finally:
            del guider.predict_noise
            if self.weak is not None:
                self.weak.cleanup()
        if run.guided.report.steps and (said := remark(run.guided)):
            warn(said)
        return samples

    def _check(self, guider: Any, plain: Any) -> None:
        """Refuse other guidance in the graph beside the stack, which would have no effect."""
        if type(guider).predict_noise is not plain.predict_noise:
            raise InputError(
                f"{type(guider).__name__} has a guidance of its own, and its MODEL carries the stack {self.stack}; "
                "take Guidestack Guider in its place"
            )
        if guider.cfg != 1:
            raise InputError(
                f"cfg is {guider.cfg:g}, and the stack {self.stack} of the MODEL guides in its place; set cfg to 1"
            )
        for place in REPLACED:
            if found := guider.model_options.get(place):
                one = found[0] if isinstance(found, list) else found
                name = f"{getattr(one, '__module__', '')}.{getattr(one, '__qualname__', type(one).__name__)}"
                raise InputError(
                    f"{name}, put into the MODEL by another node ({place}), and the stack {self.stack} guide in one "
                    "another's place; take one of the two nodes out"
                )


@dataclass(frozen=True)
class _Model:
    """A network of ComfyUI's, conditions that are processed for it, and options of its calls: None for the run's."""

    network: Any
    conds: Mapping[str, list[dict[str, Any]]]
    options: Mapping[str, Any] | None = None


class _Sampling:
    """One run of a sampler under a stack."""

    def __init__(
        self, stack: Stack, guider: Any, models: Mapping[str, _Model], sigmas: Tensor, noise: Tensor, seed: int | None
    ) -> None:
        import comfy.model_sampling

        self.stack, self.guider, self.models = stack, guider, models
        const = comfy.model_sampling.CONST
        flow = {isinstance(one.network.model_sampling, const) for one in models.values()}
        if len(flow) > 1:
            raise InputError("the weak MODEL and the other are not of one kind: one is a flow model and one is not")
        self.flow: bool = flow.pop()
        self.conditions = answering(stack, guider.conds)
        self.sigmas: list[float] = sigmas.tolist()
        batch = len(noise)
        about = Run(
            tuple(noise.shape),
            noise.dtype,
            noise.device,
            len(self.sigmas) - 1,
            tuple((seed or 0) + place for place in range(batch)),
            self.conditions.count("negative", batch),
            self.conditions.count("positive", batch),
            emits=FLOW if self.flow else X0,
        )
        self.guided = GuidedRun(stack, about, observe=self._observe)
        self.listeners = len(guider.model_options.get(AFTER, ()))
        self.index, self.evaluation = -1, 0

    def _observe(self, seen: Seen) -> Mapping[str, Tensor]:
        self.seen = seen
        return {}

    def _place(self, sigma: float) -> tuple[int, int]:
        """Return the step and the evaluation of a call: a step has all calls from its level down to the next step's."""
        sign = 1 if self.sigmas[0] >= self.sigmas[-1] else -1  # -1: back to noise
        near = abs(sigma) * ROUNDING
        index = sum(sign * (one - sigma) >= -near for one in self.sigmas[1:-1])
        self.index, self.evaluation = index, self.evaluation + 1 if index == self.index else 0
        return index, self.evaluation

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided clean samples; called by the sampler in place of the guider's own."""
        del seed
        options = model_options or {}
        listeners = options.get(AFTER, ())
        if self.stack.renoises and len(listeners) <= self.listeners:
            raise InputError(
                f"{self.stack} re-noises with a second prediction, and this sampler takes one; choose one whose name "
                "ends in _cfg_pp, such as euler_cfg_pp"
            )
        sigma = one_level(timestep)
        models = {name: replace(one, options=one.options or options) for name, one in self.models.items()}
        network = _Batches(models, self.conditions, x, timestep)
        level = Level.flow(min(sigma, 1.0)) if self.flow else Level.ve(sigma)  # rounding may lead beyond pure noise
        index, evaluation = self._place(sigma)
        estimate = self.guided.estimate(network, x, index, level, evaluation)
        steps = self.guided.report.steps
        steps[-1] = replace(steps[-1], calls=network.calls, rows=network.rows)
        guided = estimate.prediction.denoised.to(x.dtype)
        if not listeners:
            return guided
        told = self._event(estimate, guided)
        for listener in listeners:
            guided = listener({**told, "denoised": guided, "input": x, "sigma": timestep, "model_options": options})
        return guided

    def _event(self, estimate: Estimate, guided: Tensor) -> dict[str, Any]:
        """Return what callbacks get beside the estimate: the prompt's prediction, and what the stack guides away from.

        Under CFG++ the latter is the prediction that re-noises: samplers that take it from here then re-noise as with
        ComfyUI's own guider, and as the stack says if it says something. Without either it is the estimate.
        """
        seen, away = self.seen, estimate.renoise
        if away is None and (led := self.stack.away(seen.predictions, seen.step, seen.state)):
            away = led[0] if led[1] is None else led[0].where(led[1], estimate.prediction)
        everyone = len(self.guided.report.steps[-1].queries.get(POSITIVE, ())) == len(guided)
        conds = self.guider.conds
        return {
            "cond_denoised": seen.predictions[POSITIVE].denoised.to(guided.dtype) if everyone else guided,
            "uncond_denoised": guided if away is None else away.denoised.to(guided.dtype),
            "cond": conds["positive"],
            "uncond": conds.get("negative"),
            "cond_scale": self.guider.cfg,
            "model": self.guider.inner_model,
        }


class _Batches(Network):
    """ComfyUI's networks, bound to one batch at one level: all conditions of as many rows in one call."""

    parameterization = X0

    def __init__(self, models: Mapping[str, _Model], conditions: Conditions, x: Tensor, sigma: Tensor) -> None:
        self.networks, self.hosts, self.x, self.sigma = models, conditions.rows, x, sigma
        self.models, self.aliases = tuple(models), conditions.aliases
        # The order in which ComfyUI's own guider names them: the last bit of a matrix product can depend on it.
        self.conditions = sorted(
            conditions.rows, key=lambda name: (name != "positive", not name.startswith("negative"), name)
        )
        self.calls = self.rows = 0

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        """One call for each set of rows; for whole batches where something in the graph sees the batch."""
        model = self.networks[requests[0].query.model]
        conds = {request.query: model.conds[self.hosts[request.query.condition]] for request in requests}
        whole = not _divisible(model.options or {}, conds.values())
        groups: dict[tuple[int, ...] | None, list[Query]] = {}
        for request in requests:
            groups.setdefault(None if whole else request.rows, []).append(request.query)
        found: dict[Query, Tensor] = {}
        for rows, queries in groups.items():
            found |= zip(queries, self._called(model, [conds[query] for query in queries], rows), strict=True)
        return [
            found[one.query][sent(one.rows, self.x.device)] if whole and one.rows is not None else found[one.query]
            for one in requests
        ]

    def _called(self, model: _Model, conds: list[Any], rows: tuple[int, ...] | None) -> list[Tensor]:
        import comfy.samplers

        x, sigma, options = self.x, self.sigma, model.options
        if rows is not None:
            index = sent(rows, x.device)
            x, sigma = x[index], sigma[index]
            conds = [[_of_rows(one, rows) for one in several] for several in conds]
        self.calls += 1
        self.rows += len(conds) * len(x)
        if own := (options or {}).get("sampler_calc_cond_batch_function"):
            return list(
                own({"conds": conds, "input": x, "sigma": sigma, "model": model.network, "model_options": options})
            )
        return list(comfy.samplers.calc_cond_batch(model.network, conds, x, sigma, options))


def _divisible(options: Mapping[str, Any], conds: Any) -> bool:
    """Whether samples can be left out of a call: nothing in the graph that could see the whole batch is known."""
    inside = options.get("transformer_options", {})
    wrappers = [key for kind in inside.get("wrappers", {}).values() for key, some in kind.items() if some]
    seeing = ("context_handler", "model_function_wrapper", "sampler_calc_cond_batch_function")
    return not (
        any(options.get(one) for one in seeing)
        or inside.get("patches")
        or inside.get("patches_replace")
        or any(key != KEY for key in wrappers)
        or any(one.get(name) for several in conds for one in several for name in ("control", "gligen", "hooks"))
    )


def _of_rows(cond: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """A condition for some rows of the batch; what has fewer rows than it ComfyUI repeats, one after the other."""

    def picked(value: Any) -> Any:
        if isinstance(value, list):
            return [picked(one) for one in value]
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == 1:
            return value
        return value[torch.tensor([row % len(value) for row in rows], device=value.device)]

    told = {}
    for name, value in cond["model_conds"].items():
        told[name] = copy.copy(value)
        told[name].cond = picked(value.cond)
    mask = {"mask": picked(cond["mask"])} if "mask" in cond else {}
    return {**cond, **mask, "model_conds": told}
