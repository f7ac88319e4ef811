"""A stack as a guider of diffusers' Modular pipelines.

A guider says which halves a pipeline's loop is to evaluate, and combines the predictions. It is not handed the samples,
their noise level or what the network emits: the samples are taken where the denoiser is handed them, the rest from the
pipeline's scheduler.

Read in diffusers 0.42.1, ``guiders/guider_utils.py`` and ``modular_pipelines/*/denoise.py``.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor

from ..guidance.errors import GuidanceNotAppliedError, InputError, nearest, warn
from ..guidance.keyed import Keys
from ..guidance.notation.presets import as_stack
from ..guidance.notation.text import parse
from ..guidance.prediction import Level, wide
from ..guidance.query import POSITIVE, Query
from ..guidance.report import Report
from ..guidance.rule import Rule, Stack, remarks
from ..guidance.run import GuidedRun
from ..guidance.step import Run, Step
from ..pipelines import edits
from ..pipelines.hooks import below, calling
from ..samplers import Grid, entry, grid, parameterization
from ..samplers.noise import one_each
from .answered import ALIASES, Answered, ordered
from .ended import remark

OWN = ("positive", "negative")
"""The conditions of a pipeline's loop: the prompt's half, and the other."""
PROMPTS = ("positive", "independent")
"""What the names of conditions begin with that are like the prompt's."""
CLOCKS: tuple[Callable[[Any], Any], ...] = (
    lambda told: told,
    lambda told: 1000 * told,
    lambda told: 1000 * (1 - told),
)
"""Functions from the time that networks are given to the time in steps of 1000."""
PROVISIONAL = (2, 1, 1, 1)
"""Shape of a sample before the first prediction: what is asked for then does not depend on it."""


def uncarried(stack: Stack) -> str:
    """Return why a guider cannot carry `stack`, naming the rule; "" if it can."""
    for rule in stack.parts():
        if isinstance(rule, Stack):
            continue
        if rule.renoises and not any(part is not rule and part.renoises for part in rule.parts()):
            return (
                f"{rule} re-noises with a second prediction, and the loop hands its scheduler one; guidestack.guide "
                "carries it on the pipeline's classic form"
            )
        if rule.needs_identity:
            return (
                f"{rule} is for runs without a negative prompt, and a guider does not know whether there is one; "
                "guidestack.guide carries it on the pipeline's classic form"
            )
        if rule.takes_turns:
            return (
                f"{rule} evaluates and moves samples between two steps of the loop; guidestack.guide carries it on the "
                "pipeline's classic form"
            )
        if rule.own_pass:
            return f"{rule} edits the network's attention, and the loop calls the network itself"
        if rule.skips:
            return f"{rule} leaves the network out at some steps, and the loop calls it at each; take a plan without s"
        for query in rule.asks():
            if query.model != "main":
                return f"{rule} asks the network {query.model!r}, and the loop has one; guidestack.sample takes several"
            if query.grad:
                return f"{rule} asks for gradients, and the loop computes none"
    return ""


class StackGuider(BaseGuidance):  # type: ignore[misc]  # diffusers has no types
    """A stack as a guider of diffusers' Modular pipelines.

    Give it to a pipeline by ``pipe.update_components(guider=StackGuider("apg(6)", pipe.scheduler))``. It is saved and
    loaded like diffusers' own guiders; its configuration holds the stack's text. Each loop of the pipeline is a run of
    its own. One guider serves one loop at a time; `new` makes another.

    Args:
        stack: a stack, a rule, or the text or mapping of one.
        scheduler: the pipeline's, from which noise levels and the network's prediction type are read. Not saved: set
            ``scheduler`` again after loading, and when the pipeline gets another.
        conditions: conditions beside the loop's prompt and negative prompt, by name: ``"null"``, the true empty prompt,
            for Perp-Neg; ``"negative:1"`` and on, ``"positive:1"`` and on. Each is a mapping from the loop's names of
            its fields (``"prompt_embeds"``, ``"text_embeds"`` in SDXL) to embeddings, one row for all samples or one
            each; a field that it does not name is that of the prompt or of the negative prompt. For ICG
            ``"independent:SOURCE"`` is a function ``draw(generators)`` that returns such a mapping. Not saved.
        enabled: whether the stack is applied; as in diffusers' guiders.

    Attributes:
        seeds: one for each sample, from which ICG and TSG draw; None for 0, 1, ...
        run: the last run so far; None before the first evaluation.

    Raises:
        InputError: a guider cannot carry the stack: a rule re-noises (CFG++), asks for another network or for
            gradients, or must match the model that it was fitted on (LinearAG).
        StackSyntaxError, RuleError: the text or mapping of the stack is wrong.

    Cost: at each step a network call of the whole batch for each condition that any sample asks for; the loop cannot
    leave out samples that have stopped guiding. A run waits once, at its beginning, for the device with the timesteps.
    """

    __module__ = __name__.partition(".")[0]  # under its public name in the index of a pipeline that is saved with it
    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012  # the base class wants a list

    def __init__(
        self,
        stack: Rule | str | Mapping[str, Any] = "stack()",
        scheduler: Any = None,
        conditions: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ) -> None:
        super().__init__(enabled=enabled)
        self.stack = as_stack(stack)
        if reason := uncarried(self.stack):
            raise InputError(f"a guider cannot carry {self.stack}: {reason}")
        for said in remarks(self.stack):
            warn(said)
        self.register_to_config(stack=str(self.stack), enabled=enabled)
        self.scheduler, self.conditions = scheduler, conditions or {}
        self.seeds: Sequence[int] | None = None
        self.run: GuidedRun | None = None
        self._hooks = ExitStack()
        self.reset()

    @classmethod
    def from_config(cls, config: Any, *args: Any, **kwargs: Any) -> Any:
        """Make a guider from a configuration, as diffusers does when it loads one from a folder.

        Raises:
            StackSyntaxError: its stack cannot be read, or is a preset's name, which a file may not choose.
        """
        if isinstance(config, Mapping) and isinstance(text := config.get("stack"), str):
            parse(text)
        return super().from_config(config, *args, **kwargs)

    def new(self, **kwargs: Any) -> StackGuider:
        """Return another guider with the same stack, scheduler and conditions; `kwargs` replace arguments."""
        given = {"scheduler": self.scheduler, "conditions": self.conditions, **self.config, **kwargs}
        return type(self)(**{name: value for name, value in given.items() if not name.startswith("_")})

    @property
    def conditions(self) -> Mapping[str, Any]:
        """The conditions beside the loop's prompt and negative prompt, by name."""
        return self._conditions

    @conditions.setter
    def conditions(self, given: Mapping[str, Any]) -> None:
        for name, fields in given.items():
            if ALIASES.get(name, name) in OWN:
                raise InputError(f"conditions: {name!r} is the loop's own; give it to the pipeline as a prompt")
            if not callable(fields) and not isinstance(fields, Mapping):
                raise InputError(f"conditions[{name!r}] must be a mapping of embeddings, got {type(fields).__name__}")
            if callable(fields) != name.startswith("independent:"):
                raise InputError(
                    f"conditions[{name!r}]: a condition that is drawn is called 'independent:SOURCE' and is a function "
                    "draw(generators); others are mappings"
                )
        for kind in OWN:
            count = self._numbered(given, kind)
            if missing := [index for index in range(1, count + 1) if f"{kind}:{index}" not in given]:
                raise InputError(f"conditions have {count} {kind} ones beside the first, and no {kind}:{missing[0]}")
        self._conditions = dict(given)

    @staticmethod
    def _numbered(given: Mapping[str, Any], kind: str) -> int:
        return sum(name.startswith(f"{kind}:") for name in given)

    @property
    def report(self) -> Report | None:
        """The report of the last run so far; None before the first."""
        return self.run.report if self.run else None

    # --- where the run stands ------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Discard the run, so that the next step begins a new one; a loop that starts again needs no call of it."""
        self._hooks.close()
        self.run = None
        self._grid: Grid | None = None
        self._began = self._position = 0
        self._step_level: Level | None = None
        self._asked: list[Query] = []
        self._step = self._num_inference_steps = None
        self._next: tuple[int, int] | None = None
        self._sample: Any = None
        self._found: edits.Architecture | None = None
        self._clock: Callable[[Any], Any] | None = None

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """Begin a step; called by the loop."""
        goes_on = self._grid is not None and (step, num_inference_steps) == self._next
        if not goes_on:
            self.reset()
        super().set_state(step, num_inference_steps, timestep)
        self._next = step + 1, num_inference_steps
        if self.scheduler is None:
            raise InputError(
                "StackGuider has no scheduler to read noise levels from; set guider.scheduler = pipe.scheduler"
            )
        if self._grid is None:
            begin = getattr(self.scheduler, "begin_index", None)
            self._began = entry(self.scheduler, timestep) - step if begin is None else int(begin)
            self._grid = grid(self.scheduler, self._began)
        self._position = self._began + step
        if self._position >= len(self._grid.points):
            raise GuidanceNotAppliedError(
                f"the loop is at step {step} of {num_inference_steps} and the scheduler's schedule has "
                f"{len(self._grid.points)}; set guider.scheduler to the pipeline's"
            )
        point = self._grid.points[self._position]
        if point.evaluation == 0 or self._step_level is None:
            self._step_level = point.level

    @property
    def _active(self) -> Stack:
        return self.stack if self._enabled else Stack()

    @property
    def num_conditions(self) -> int:
        """How many conditions are evaluated: at the current step, or before a run the most at any step.

        Encoders read it before a run, to know whether a negative prompt will be needed.
        """
        names = {ALIASES.get(query.condition, query.condition) for query in self._active.asks()}
        names = {"negative" if name == "negative:each" else name for name in names} - {"positive:each"}
        return len(self._asked) or len(names | {"positive"})

    @property
    def is_conditional(self) -> bool:
        """Whether the condition that is currently evaluated is a prompt, and not a negative or empty one."""
        place: int = self._count_prepared - 1
        return 0 <= place < len(self._asked) and self._asked[place].condition.startswith(PROMPTS)

    # --- one step ------------------------------------------------------------------------------------------------

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """Return the denoiser's inputs for each condition that the stack asks for; the loop calls it at each step."""
        return self._prepared(
            lambda half, identifier: self._prepare_batch(data, half, identifier),
            any(isinstance(value, tuple) for value in data.values()),
        )

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        """Return what `prepare_inputs` returns, for loops that give the names of the inputs in their state."""
        return self._prepared(
            lambda half, identifier: self._prepare_batch_from_block_state(input_fields, data, half, identifier),
            any(isinstance(value, tuple) for value in input_fields.values()),
        )

    def _prepared(self, half: Callable[[int, str], Any], two: bool) -> list[Any]:
        batch = _rows(half(0, "pred_cond").as_dict())
        self._asked = self._wanted(batch)
        batches = []
        for query in self._asked:
            name = query.condition
            like = "positive" if name.startswith(PROMPTS) else "negative"
            inputs = half(OWN.index(like) if two else 0, self._identifier(query))
            if like == "negative":
                self._check_other_half(half(0, ""), inputs, two)
            if name not in OWN:
                self._overlay(inputs, name, batch)
            batches.append(inputs)
        return batches

    @staticmethod
    def _identifier(query: Query) -> str:
        if not query.perturbation and query.condition in OWN:
            return "pred_cond" if query.condition == "positive" else "pred_uncond"
        return "pred_" + "".join(letter if letter.isalnum() else "_" for letter in str(query))

    def _wanted(self, batch: int) -> list[Query]:
        """The queries of the stack at this step, under the loop's names, without what no sample asks for."""
        run = self.run or GuidedRun(self._active, self._about((batch, *PROVISIONAL), torch.float32, None))
        if batch != run.run.batch:
            raise GuidanceNotAppliedError(
                f"the loop goes on with {batch} samples in a run of {run.run.batch}; call guider.reset() before another"
            )
        point = self._point
        step = Step(run.run, point.step, point.level, point.evaluation, self._step_level, point.time)
        asked = run.stack.queries(step, run.state)
        wanted = [query for query, rows in asked.items() if rows is None or bool(rows.any())]
        named = [dataclasses.replace(one, condition=ALIASES.get(one.condition, one.condition)) for one in wanted]
        for name in (query.condition for query in named):
            if name not in (*OWN, *self.conditions):
                given = f" (given: {', '.join(self.conditions)})" if self.conditions else ""
                raise InputError(
                    f"{self.stack} asks for {name!r}, which the loop does not have; add it to guider.conditions as "
                    f"{{{name!r}: {{field: embedding}}}}{given}"
                )
        return ordered([POSITIVE, *named])

    def _about(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None) -> Run:
        assert self._grid is not None  # a step was begun
        batch = shape[0]
        seeds = one_each(self.seeds, batch, given="guider.")
        return Run(
            shape,
            dtype,
            device or torch.device("cpu"),
            self._grid.steps,
            seeds,
            (1 + self._numbered(self.conditions, "negative"),) * batch,
            (self._numbered(self.conditions, "positive"),) * batch,
            emits=parameterization(self.scheduler),
        )

    @property
    def _point(self) -> Any:
        assert self._grid is not None  # a step was begun
        return self._grid.points[self._position]

    def _check_other_half(self, prompt: Any, other: Any, two: bool) -> None:
        lost = [name for name, value in prompt.as_dict().items() if value is not None and other[name] is None]
        if lost or not two:
            raise InputError(
                f"{self.stack} asks for an unconditional branch, and the pipeline prepared none"
                f"{f' ({lost[0]})' if lost else ''}; give it a negative prompt or embeddings"
            )

    def _overlay(self, inputs: Any, name: str, batch: int) -> None:
        """Put the fields of a further condition into `inputs`."""
        fields = self.conditions[name]
        if callable(fields):
            fields = fields(self._keys(batch).generators(range(batch), name))
        known = inputs.as_dict()
        for field, value in fields.items():
            if field not in known:
                raise InputError(f"conditions[{name!r}]: the loop has no field {field!r}{nearest(field, known)}")
            if len(value) not in (1, batch):
                raise InputError(
                    f"conditions[{name!r}][{field!r}] has {len(value)} rows for {batch} samples; give one for all, or "
                    "one each"
                )
            if len(value) < batch:
                value = list(value) * batch if isinstance(value, list) else value.expand(batch, *value.shape[1:])
            inputs[field] = value

    def _keys(self, batch: int) -> Keys:
        point = self._point
        seeds = tuple(range(batch)) if self.seeds is None else tuple(self.seeds)
        return Keys(seeds, point.step, point.evaluation)

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Hook the loop's next call of the denoiser; the loop calls it before each one.

        The hook reads the samples, and perturbs the call of a perturbed query. It is removed when the call returns or
        fails, and acts on no other caller's calls.
        """
        super().prepare_models(denoiser)
        query = self._asked[self._count_prepared - 1]
        if query.perturbation and self._found is None:
            for asked in self._active.asks():
                if asked.perturbation:
                    edits.check(denoiser, asked.perturbation)
            self._found = edits.architecture(denoiser)
        self._hooks.close()  # of a step that failed between this and the denoiser
        hooks = self._hooks = ExitStack()

        def hook(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            with hooks:
                sample = args[0] if args else kwargs[next(iter(inspect.signature(denoiser.forward).parameters))]
                asked, self._asked = self._asked, []  # of a call that fails nothing is left
                with self._perturbed(denoiser, query, len(sample), args, kwargs):
                    answer = original(*args, **kwargs)
                self._asked, self._sample = asked, sample
                return answer

        hooks.enter_context(calling(denoiser, hook, below("prepare_models")))

    def _perturbed(
        self, denoiser: torch.nn.Module, query: Query, batch: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AbstractContextManager[None]:
        edit = query.perturbation
        if edit is None:
            return nullcontext()
        generators = self._keys(batch).generators(range(batch), f"{edit.kind} {query.condition}")
        if edit.kind == edits.SHIFT and self._clock is None:
            names = inspect.signature(denoiser.forward).parameters
            given = dict(zip(names, args, strict=False)) | kwargs
            self._clock = self._clock_of(float(torch.as_tensor(given[edits.time_argument(denoiser)]).max()))
        return edits.edited(denoiser, edit, generators, self._found, self._clock or CLOCKS[0])

    def _clock_of(self, told: float) -> Callable[[Any], Any]:
        """Return the function from the time that the loop gives its denoiser to the loop's timestep."""
        now = float(torch.as_tensor(self._timestep).max())
        for clock in CLOCKS:
            if abs(clock(told) - now) < 1e-2 * max(1.0, now):
                return clock
        raise InputError(
            f"{self.stack} shifts the time, and how to do that is not known of this loop: it gives its network "
            f"{told:g} at timestep {now:g}"
        )

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """Check that the denoiser was called; the loop calls it after each call of the denoiser.

        Raises:
            GuidanceNotAppliedError: the denoiser was not called.
        """
        self._hooks.close()
        if self._sample is None:
            raise GuidanceNotAppliedError(f"the loop did not call the {type(denoiser).__name__} that it announced")

    def forward(self, **predictions: Tensor) -> GuiderOutput:
        """Return the stack's estimate from the denoiser's answers by identifier; the loop calls it at each step."""
        answers = {query: predictions[self._identifier(query)] for query in self._asked}
        native, point = answers[POSITIVE], self._point
        network = Answered(answers, (*OWN, *self.conditions), parameterization(self.scheduler), edits.PERTURBATIONS)
        x = self._samples(native, point.level)
        if self.run is None:
            self.run = GuidedRun(self._active, self._about(tuple(native.shape), native.dtype, native.device))
        estimate = self.run.estimate(network, x, point.step, point.level, point.evaluation, point.time)
        steps = self.run.report.steps
        steps[-1] = network.accounted(steps[-1])
        self._asked, self._sample = [], None
        assert self._grid is not None  # a step was begun
        ends = self._position + 1 == len(self._grid.points)
        if ends and (said := remark(self.run)):
            warn(said)
        return GuiderOutput(
            pred=estimate.prediction.native,
            pred_cond=native,
            pred_uncond=answers.get(Query("negative")),
        )

    def _samples(self, native: Tensor, level: Level) -> Tensor:
        """The samples that `native` answers, in the scheduler's scaling, from what the denoiser was handed."""
        x: Any = self._sample  # a tensor, or a list of them
        if isinstance(x, list | tuple):
            x = torch.stack(list(x))
        if x.ndim == native.ndim + 1 and x.shape[2] == 1:  # Z-Image: an axis of one frame
            x = x.squeeze(2)
        if x.ndim == native.ndim and x.shape[1] > native.shape[1]:  # a picture to go by, in further channels or tokens
            x = x[:, : native.shape[1]]
        if x.shape != native.shape:
            raise GuidanceNotAppliedError(
                f"the denoiser was handed {tuple(x.shape)} and the loop makes {tuple(native.shape)} of its answer, so "
                "that it cannot be told which samples it answers"
            )
        scale = input_scale(self.scheduler, level)
        scaled: Tensor = x if scale == 1 else x.to(wide(x.dtype)) / scale
        return scaled


def input_scale(scheduler: Any, level: Level) -> float:
    """Return the factor by which ``scheduler.scale_model_input`` multiplies samples at `level`."""
    data = getattr(scheduler.config, "sigma_data", None)
    if data is not None:
        return 1 / math.hypot(level.sigma, data)
    exploding = level.path == "diffusion" and level.alpha == 1 and level.sigma > 0
    return 1 / math.hypot(level.sigma, 1) if exploding else 1.0


def _rows(inputs: Mapping[str, Any]) -> int:
    """Samples of a batch, from the inputs of its prompt's half."""
    for value in inputs.values():
        if isinstance(value, Tensor | list | tuple):
            return len(value)
    raise GuidanceNotAppliedError(f"the loop gives the guider no inputs with rows: {sorted(inputs)}")
