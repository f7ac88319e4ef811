"""Rules inside a stock pipeline, around its denoiser: what guide() is compared with for every family.

There is none of the package's code here. The stock pipeline runs with its own guidance on, and its denoiser is made to
return what the formulas of `by_hand` say in every place where a condition's answer is expected: the pipeline's own
combination of these is then that answer. Other prompts are put to the denoiser as the pipeline itself put them to it in
another run, in which they were its negative prompt, or its prompt; only the samples are exchanged. No rows are cut.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .by_hand import At, Guide, Memory

DENOISERS = ("unet", "transformer", "transformer_2")
RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "block_controlnet_hidden_states",
    "controlnet_block_samples",
    "controlnet_single_block_samples",
)
Hook = Callable[[Callable[..., Any], dict[str, Any]], Any]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is `value`, an attribute of the object itself, while the context lasts."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def denoising(pipe: Any, hook: Hook) -> Iterator[None]:
    """While the context lasts, ``hook(original, arguments)`` answers the calls of `pipe`'s denoisers."""
    modules = [module for module in (getattr(pipe, name, None) for name in DENOISERS) if module is not None]
    before = [vars(module).get("forward") for module in modules]  # where others hook into it
    for module in modules:
        original = module.forward
        signature = inspect.signature(original)

        @functools.wraps(original)
        def forward(*args: Any, original: Any = original, signature: Any = signature, **kwargs: Any) -> Any:
            return hook(original, signature.bind(*args, **kwargs).arguments)

        forward.remembers = False  # type: ignore[attr-defined]
        module.forward = forward
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            del module.forward
            if own is not None:
                module.forward = own


@contextmanager
def stepping(pipe: Any, hook: Callable[[Tensor], None]) -> Iterator[None]:
    """While the context lasts, `hook` is handed every sample that the scheduler returns, to be changed in place."""
    step = pipe.scheduler.step

    @functools.wraps(step)  # pipelines read its signature
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        hook(result[0])
        return result

    with replaced(pipe.scheduler, "step", watched):
        yield


def trajectory(pipe: Any, call: Callable[..., Any], arguments: Mapping[str, Any]) -> Tensor:
    """What the scheduler returns at each step of a call, the steps on axis 0."""
    seen: list[Tensor] = []
    with stepping(pipe, lambda reached: seen.append(reached.clone())):
        call(**arguments)
    return torch.stack(seen)


def levels(scheduler: Any) -> list[tuple[float, float]]:
    """(alpha, sigma) before every step and after the last, from the scheduler's own tables; see also `reached`."""
    name, config = type(scheduler).__name__, scheduler.config
    if "DDIM" in name or "DDPM" in name or name == "CogVideoXDPMScheduler":
        bars = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
        last = 1.0 if "DDPM" in name else float(scheduler.final_alpha_cumprod)
        return [(math.sqrt(bar), math.sqrt(1 - bar)) for bar in (*bars, last)]
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        if config.get("invert_sigmas"):
            return [(sigma, 1 - sigma) for sigma in sigmas]
        return [(1 - sigma, sigma) for sigma in sigmas]
    if name.startswith(("E", "Cosine")):  # Euler, and EDM's
        return [(1.0, sigma) for sigma in sigmas]
    assert name == "DPMSolverMultistepScheduler"
    return [(1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)) for sigma in sigmas]


def reached(scheduler: Any, step: int) -> float:
    """alpha after a step. DDIM goes on by T/n from where it is, which need not be the next entry of its timesteps."""
    if "DDIM" in type(scheduler).__name__:
        after = int(scheduler.timesteps[step]) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        return math.sqrt(float(scheduler.alphas_cumprod[after] if after >= 0 else scheduler.final_alpha_cumprod))
    return levels(scheduler)[step + 1][0]


def clean(scheduler: Any, alpha: float, sigma: float, negated: bool) -> tuple[float, float]:
    """(p, q) with x0 = p x + q times what the network emits."""
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return 1.0, sigma if negated or config.get("invert_sigmas") else -sigma
    kind = config.prediction_type
    if config.get("sigma_data"):
        assert kind == "v_prediction"
        data = config.sigma_data
        return data**2 / (sigma**2 + data**2), -sigma * data / math.sqrt(sigma**2 + data**2)
    if kind == "v_prediction":
        return alpha, -sigma
    assert kind == "epsilon"
    return 1 / alpha, -sigma / alpha


@dataclass
class Seen(At):
    """One evaluation of one sample, of any network."""

    p: float = 0.0
    q: float = 0.0

    def D(self, output: Tensor) -> Tensor:
        return self.p * self.x + self.q * output

    def eps(self, output: Tensor) -> Tensor:
        return (self.x - self.alpha * self.D(output)) / self.sigma

    def output(self, D: Tensor) -> Tensor:
        return (D - self.p * self.x) / self.q


@dataclass
class Course:
    """A run: the samples after each step and at the end, and each sample's evaluations and memory."""

    result: Any = None
    steps: list[Tensor] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)


def as_tensor(samples: Any) -> Tensor:
    """A tensor ``(B, ...)``; some networks take and return a list of samples with an axis more."""
    return torch.stack(list(samples)).squeeze(2) if isinstance(samples, list) else samples


def own(value: Any) -> Any:
    """A dictionary or list of one's own: pipelines and networks write into those that they hand on."""
    return type(value)(value) if isinstance(value, dict | list) else value


Calls = list[tuple[Callable[..., Any], dict[str, Any]]]


def recorded(pipe: Any, arguments: Mapping[str, Any]) -> Calls:
    """The calls that a stock run makes of its denoisers."""
    calls: Calls = []

    def hook(original: Callable[..., Any], given: dict[str, Any]) -> Any:
        calls.append((original, {name: own(value) for name, value in given.items()}))
        return original(**{name: own(value) for name, value in given.items()})

    with denoising(pipe, hook):
        pipe(**arguments)
    return calls


@dataclass
class Stock:
    """A stock pipeline.

    Args:
        pipe: the pipeline.
        halves: the conditions of its own guidance, in its order.
        others: the runs in which other prompts were its own: for a name that begins with "positive" its prompt, for
            others its negative one.
        negated: whether the pipeline negates what its network emits.
        part: where the noisy samples are in what the network is handed and returns, given its arguments.
    """

    pipe: Any
    halves: Sequence[str]
    others: Mapping[str, Calls]
    negated: bool = False
    part: Callable[[dict[str, Any]], tuple[slice, ...]] | None = None

    def run(self, arguments: Mapping[str, Any], guides: Sequence[Guide]) -> Course:
        """Sample, each sample under its own of `guides`."""
        one = _Run(self, guides)
        with denoising(self.pipe, one.denoise), stepping(self.pipe, one.stepped):
            if hasattr(self.pipe.scheduler, "scale_model_input"):
                scale = self.pipe.scheduler.scale_model_input

                def watched(sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                    one.x = sample
                    return scale(sample, *args, **kwargs)

                with replaced(self.pipe.scheduler, "scale_model_input", watched):
                    one.course.result = self.pipe(**arguments)[0]
            else:
                one.course.result = self.pipe(**arguments)[0]
        return one.course


class _Run:
    def __init__(self, stock: Stock, guides: Sequence[Guide]) -> None:
        self.stock, self.batch, self.guides = stock, len(guides), guides
        self.course = Course(evaluations=[0] * self.batch, memories=[{} for _ in guides])
        self.x: Tensor | None = None
        self.told: Any = None
        self.part: tuple[slice, ...] = ()
        self.added: Tensor | None = None
        self.calls = 0

    def denoise(self, original: Callable[..., Any], given: dict[str, Any]) -> Any:
        sample = next(iter(given))
        sequential = len(given[sample]) == self.batch
        number, self.calls = self.calls, self.calls + 1
        if sequential and number % 2:
            return self.told
        samples = as_tensor(given[sample])
        output = original(**{name: own(value) for name, value in given.items()})
        native = as_tensor(output[0])
        part = self.stock.part(given) if self.stock.part else None
        x = (self.x if self.x is not None else samples)[: self.batch]
        x = x[(slice(None), *part)] if part else x
        self.part = (slice(None), *(part or (slice(x.shape[1]),)))
        if sequential:
            answers = {"positive": native}
        else:
            answers = dict(zip(self.stock.halves, native.chunk(len(self.stock.halves)), strict=True))

        def ask(name: str) -> Tensor:
            if name == "negative:0" and "image" not in self.stock.halves:
                name = "negative"
            if name not in answers:
                answers[name] = self.ask(name, number, sequential, sample, given)
            return answers[name]

        guided = self.guided(ask, x, number // 2 if sequential else number, 2 if sequential else 1)
        told = answers["positive"].clone()
        told[self.part] = guided
        told = torch.cat([told] * (len(native) // self.batch))
        form = list(told.unsqueeze(2)) if isinstance(output[0], list) else told
        self.told = (form, *output[1:]) if isinstance(output, tuple) else type(output)(form)
        return self.told

    def ask(self, name: str, number: int, sequential: bool, sample: str, given: dict[str, Any]) -> Tensor:
        """The answer to another prompt: a call of another run with the samples of this one."""
        part = "positive" if name.startswith("positive") else "negative"
        if part == "negative" and "image" in self.stock.halves:
            part = "image"  # other prompts see the picture, as the prompt does
        which = ("positive", "negative").index(part) if sequential else self.stock.halves.index(part)
        original, other = self.stock.others[name][number + which if sequential else number]
        other = {**other, sample: given[sample]}
        for residual in RESIDUALS:
            if given.get(residual) is not None:
                other[residual] = given[residual] if sequential else self._of(given[residual], which)
        native = as_tensor(original(**{name: own(value) for name, value in other.items()})[0])
        return native if sequential else native.chunk(len(self.stock.halves))[which]

    def _of(self, residual: Any, which: int) -> Any:
        """A control picture's residuals are those of the prompt, or of the negative prompt, for all texts of a kind."""
        if isinstance(residual, list | tuple):
            return [self._of(one, which) for one in residual]
        return torch.cat([residual.chunk(2)[which]] * 2)

    def guided(self, ask: Callable[[str], Tensor], x: Tensor, number: int, calls: int) -> Tensor:
        """What the rule makes of the answers, each sample alone, in double precision."""
        scheduler, outputs, added = self.stock.pipe.scheduler, [], []
        steps = len(next(iter(self.stock.others.values()))) // calls
        step = len(scheduler.timesteps) - steps + number  # a run that begins in the middle ends where all do
        (alpha, sigma), after = levels(scheduler)[step], reached(scheduler, step)
        for one, guide in enumerate(self.guides):

            def answer(name: str, one: int = one) -> Tensor:
                return ask(name)[one : one + 1][self.part].double()

            own = x[one : one + 1].double()
            p, q = clean(scheduler, alpha, sigma, self.stock.negated)
            at = Seen(own, alpha, sigma, False, step, 0.0, answer, p=p, q=q)
            memory = self.course.memories[one]
            output = guide(at, memory)
            base = memory.pop("renoise", output)
            added.append(after * (at.D(output) - at.D(base)))
            outputs.append(base)
            self.course.evaluations[one] += len({"positive", *at.answers})
        self.added = torch.cat(added)
        return torch.cat(outputs).to(x.dtype)

    def stepped(self, reached: Tensor) -> None:
        if self.added is not None:
            if self.added.ndim < reached.ndim:  # tokens of frames
                reached.add_(self.added.transpose(1, 2).reshape(reached.shape))
            elif self.added.shape != reached.shape:
                reached[self.part].add_(self.added)
            else:
                reached.add_(self.added)
        self.x = self.added = None
        self.course.steps.append(reached.clone())
