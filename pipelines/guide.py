"""guide(): a stack for an existing diffusers pipeline, which is left exactly as it was found."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import numpy as np

from ..guidance.errors import NonFiniteError, warn
from ..guidance.fields import count
from ..guidance.notation.objectives import checked
from ..guidance.notation.presets import as_stack
from ..guidance.observe import Observer
from ..guidance.plan import Plan, plan
from ..guidance.report import Report
from ..guidance.rule import Rule, Stack
from ..guidance.run import GuidedRun
from ..samplers import grid, parameterization, scheduler_with_steps
from ..samplers.moving import check_room
from ..samplers.names import OWN
from .answerable import ASKED, check_answerable, check_rows
from .families.lookup import denoisers_of, family_of, hands_on
from .families.record import Call, Family, Pipeline
from .guided_call import call_arguments
from .hooks import calling, exclusively, methods, restored
from .prompts import Prompts
from .second import Second, second_networks
from .session import Session
from .steps import Steps
from .surface import Surface, bare


def guide(
    pipe: Pipeline,
    stack: Rule | str | Mapping[str, Any],
    *,
    max_rows: int | None = None,
    observe: Observer | None = None,
    rows: str = ASKED,
    networks: Mapping[str, Any] | None = None,
    objectives: Mapping[str, Any] | None = None,
) -> GuidedPipeline:
    """Guide an existing diffusers pipeline with a stack.

    Args:
        pipe: a pipeline of a supported family, or of a class that hands its calls on to one. It is used as it is and
            left as it is: no component is replaced, and the hooks of a call end with the call. One that is guided
            already counts as the pipeline in it: the new stack stands alone.
        stack: a stack, a rule, or the text or mapping of one.
        max_rows: at most this many rows in one call of the denoiser; None for the pipeline's own batches.
        observe: a function that is called after every evaluation; it changes nothing and costs no evaluations.
        rows: ``"asked"``: a network call has the rows that the stack asks for. ``"pipeline"``: it has those of the
            pipeline's own call in their order, always; what the stack did not ask for is evaluated, counted and not
            used. It is for attention processors that take the batch for [unconditional, conditional], for patches of
            the network that remember its last call, and for engines of a fixed batch size.
        networks: further networks by name, for queries such as ``"positive@weak"``: ``{"weak": NETWORK}``. A network is
            a module of the class of the pipeline's denoiser, or a pipeline with one; a folder of either, or the hub id
            of a pipeline (safetensors only); ``"bundled"``, the weak twin of the bundled model; `Adapters` of the
            pipeline's own network; or a `guidance.Perturbation` of it. It gets the pipeline's own arguments, so it
            must have the channels and the condition widths of the pipeline's network. At each call it is moved to the
            device and the dtype of that network.
        objectives: the objectives that rules such as `TFG` steer by, by name: ``{"mine": function}`` with a function
            ``log f(x0) -> (B,)`` of the clean sample. It gets pictures ``(B, 3, H, W)`` with values in [0, 1], made by
            the pipeline's own decoder, or latents if its attribute `space` is "latents". For the name of a shipped
            objective, the file that it takes. See docs/objectives.md.

    Returns:
        An object to call like the pipeline, without `guidance_scale` and the other arguments that the stack replaces.

    Raises:
        UnsupportedPipelineError: there is no record for this pipeline, or it cannot run the stack; or with
            ``rows="pipeline"`` the stack asks for what the pipeline does not evaluate by itself.
        InputError: `pipe` is not a pipeline; `max_rows` is not a number of rows; `rows` is neither of the two, or
            ``"pipeline"`` together with `max_rows`; or one of `networks` cannot be loaded, or has another shape.
        UnsupportedSchedulerError: the levels of its scheduler are not known; or a rule moves samples between two steps,
            and the scheduler evaluates more than once a step or remembers earlier steps.
        StackSyntaxError, RuleError: the text or mapping of the stack is wrong.

    Cost: the evaluations that the stack asks for, in the same network calls as the pipeline's own guidance where that
    evaluates the same rows.
    """
    pipe = bare(pipe)
    family, stack = family_of(pipe), as_stack(stack)
    if hands_on(pipe):
        warn(f"{type(pipe).__name__} hands its calls on to {family.pipeline}, and is guided as one")
    denoisers_of(pipe, family)
    parameterization(pipe.scheduler)  # refuse what is unknown now, not after the text encoder has run
    check_room(stack, pipe.scheduler)
    seconds = second_networks(pipe, family, networks)
    check_answerable(pipe, family, stack, seconds, objectives)
    check_rows(family, stack, max_rows, rows)
    return GuidedPipeline(pipe, family, stack, max_rows, observe, rows, seconds, objectives)


class GuidedPipeline(Surface):
    """A pipeline that samples under a stack; `guide` makes it, and it is called like the pipeline.

    It has the pipeline's own attributes: ``guided.scheduler = ...`` gives the pipeline another scheduler,
    ``guided.to(...)`` moves it, ``guided.components`` are its parts.

    Attributes:
        pipe: the pipeline, unchanged.
        stack: the stack; may be set to whatever `guide` takes.
        networks: the networks beside the pipeline's own, by name.
        objectives: the objectives that rules steer by, by name.
        run: the run of the last call, with its state; None before the first evaluation.
        made_by: name of the function that makes this.
    """

    made_by: ClassVar[str] = "guide"

    def __init__(
        self,
        pipe: Pipeline,
        family: Family,
        stack: Stack,
        max_rows: int | None = None,
        observe: Observer | None = None,
        rows: str = ASKED,
        networks: Mapping[str, Second] | None = None,
        objectives: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipe, self.family, self.stack, self.observe = pipe, family, stack, observe
        self.networks, self.objectives = dict(networks or {}), dict(checked(objectives))
        self.max_rows = None if max_rows is None else count("max_rows", max_rows)
        self.rows = rows
        self.run: GuidedRun | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "stack":
            value = as_stack(value)
            if "stack" in vars(self):  # another one, after `guide` has looked at the first
                check_answerable(self.pipe, self.family, value, self.networks, self.objectives)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"{self.made_by}({type(self.pipe).__name__}, {str(self.stack)!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline under the stack.

        Args:
            *args: the pipeline's own arguments.
            **kwargs: the pipeline's own arguments, without those that the stack decides (`guidance_scale`, ...): these
                do nothing, and a warning says so. Under a stack with `PerpNeg`, ``negative_prompt`` may be a list of
                texts for each prompt, and so may ``extra_prompt``: positives beside the prompt. Several negatives may
                be given as embeddings too: each of the pipeline's own arguments for those of a negative prompt is then
                a list. ``null_embeds`` is the empty condition as embeddings, for a pipeline without its text encoder:
                a tensor, or a mapping with the pipeline's names for all embeddings of a prompt,
                ``{"prompt_embeds": ..., "pooled_prompt_embeds": ...}``; a row for each prompt, or one for all. Where no
                negative is given, it is that too.

        Returns:
            What the pipeline returns.

        Raises:
            InputError: an argument that the pipeline does not have, or one of another size than the prompts.
            NonFiniteError: NaN or Inf in a sample. The others are made to the end: the error's `output` is what the
                pipeline returned, its `samples` say which of that are lost.
            GuidanceNotAppliedError: the call ended and the guidance had not happened, or the pipeline is in use.
            QueryError: the pipeline cannot answer what the stack asks.
        """
        call, prompts = self._call(args, kwargs)
        return self._run(self._session(call, prompts))

    def _session(self, call: Call, prompts: Prompts, steps: Steps | None = None) -> Session:
        """One call, given its arguments and where it stands in its schedule."""
        about = self.pipe, self.family, self.stack, call, prompts
        return Session(*about, self.max_rows, self.observe, self.rows, steps, self.networks, self.objectives)

    def _run(self, session: Session) -> Any:
        """Call the pipeline with the hooks of a session."""
        # A lost sample is said once, by an error; numpy would warn of it where a picture is made of it.
        with self.hooked(session), np.errstate(invalid="ignore"):
            try:
                output = session.caller.run(session.call)
            finally:
                self.run = session.run
                session.calls.forget()
        try:
            session.finish()
        except NonFiniteError as error:
            error.output = output
            raise
        return output

    @contextmanager
    def hooked(self, session: Session) -> Iterator[None]:
        """Let `session` answer the calls of the denoiser and follow the scheduler while the context lasts.

        Raises:
            GuidanceNotAppliedError: the pipeline or its scheduler is in use.
        """
        denoisers, scheduler = denoisers_of(self.pipe, self.family), self.pipe.scheduler
        with ExitStack() as hooks:
            switched = denoisers if any(one.adapters is not None for one in self.networks.values()) else ()
            hooks.enter_context(exclusively(self.pipe, scheduler, *switched))
            self.run = None
            hooks.enter_context(restored(self.pipe, self.family.scratch))
            session.encode()
            for denoiser in denoisers:
                answer = functools.partial(session.denoise, denoiser)
                hooks.enter_context(calling(denoiser, answer, session.caller.owns))
            hooks.enter_context(methods(scheduler, session.steps.watched))
            yield

    def plan(self, steps: int, negatives: int = 1, positives: int = 0) -> Plan:
        """Return what a call of `steps` steps will ask for, without running it; ``str`` of it is a table.

        Args:
            steps: ``num_inference_steps`` of the call.
            negatives: how many negative prompts a sample has.
            positives: how many positive prompts a sample has beside its first.

        Raises:
            GuidestackError: the stack is not for such a run.
        """
        schedule = grid(scheduler_with_steps(OWN, self.pipe.scheduler, steps))
        return plan(self.stack, schedule.points, negatives, positives)

    @property
    def report(self) -> Report | None:
        """The report of the last call; None before the first."""
        return self.run.report if self.run else None

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Prompts]:
        """The arguments to call the pipeline with, by name, and what is evaluated beside its prompt."""
        return call_arguments(self.pipe, self.family, self.stack, args, kwargs)
