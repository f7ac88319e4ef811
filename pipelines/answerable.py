"""What a pipeline cannot answer, refused before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..guidance.errors import InputError, UnsupportedPipelineError, nearest
from ..guidance.notation.objectives import objectives
from ..guidance.rule import Stack
from . import edits
from .decoding import cannot_decode
from .families.lookup import denoisers_of, signature_of
from .families.record import Family, Pipeline
from .gradients import check_backward
from .second import Second

ASKED, PIPELINES = "asked", "pipeline"
"""Which rows a network call has: those that the stack asks for, or always those of the pipeline's own call."""


def check_rows(family: Family, stack: Stack, max_rows: int | None, rows: str) -> None:
    """Check that the argument `rows` of `guide` is valid and that the stack can run under it.

    Raises:
        InputError: it is unknown, or contradicts `max_rows`.
        UnsupportedPipelineError: the stack asks for what the pipeline does not evaluate by itself.
    """
    if rows not in (ASKED, PIPELINES):
        raise InputError(f"rows is {ASKED!r} or {PIPELINES!r}, got {rows!r}")
    if rows == ASKED:
        return
    if max_rows is not None:
        raise InputError(
            f"rows={rows!r} keeps the pipeline's calls whole and max_rows={max_rows!r} cuts them; drop one"
        )
    if asked := beyond(family, stack):
        raise UnsupportedPipelineError(
            f"rows={rows!r} evaluates what {family.pipeline} does by itself, {', '.join(family.halves)}, and {stack} "
            f"asks for {', '.join(asked)}; leave rows={rows!r} out, or the rule that asks"
        )


def beyond(family: Family, stack: Stack) -> list[str]:
    """Return the queries of a stack that the pipeline does not evaluate itself, which ``rows="pipeline"`` excludes."""
    own = {*family.halves, "null", "negative"}
    return [str(edit) for edit in stack.own_pass] + sorted(
        str(query)
        for query in stack.asks()
        if query.perturbation or query.model != "main" or query.condition not in own
    )


def check_answerable(
    pipe: Pipeline,
    family: Family,
    stack: Stack,
    networks: Mapping[str, Second] | None = None,
    given: Mapping[str, Any] | None = None,
) -> None:
    """Refuse what the pipeline cannot answer, before anything runs.

    Args:
        pipe: the pipeline.
        family: its record.
        stack: the stack.
        networks: those that were given beside its own, by name.
        given: the objectives that were given, by name.

    Raises:
        UnsupportedPipelineError: it cannot.
        InputError: there is no such objective.
        RuleError: an objective cannot be used by its rule.
    """
    conditions = sorted({query.condition for query in stack.asks()} - {"positive"})
    unconditional = [condition for condition in conditions if not condition.startswith("independent:")]
    if unconditional and (reason := family.cannot(pipe)):
        asked = ", ".join(unconditional)
        raise UnsupportedPipelineError(f"{stack} asks for {asked}; this pipeline cannot answer: {reason}")
    for condition in conditions:
        kind, _, which = condition.partition(":")
        if kind == "independent" and which not in family.random:
            known = ", ".join(repr(source) for source in family.random)
            others = f"; it has {known}" if known else ", nor any other"
            raise UnsupportedPipelineError(
                f"{type(pipe).__name__} has no random condition from source={which!r}{others}"
            )
        if which == "each" and family.encode is None:
            has = "no way to encode further ones" if "prompt" in signature_of(pipe).parameters else "none"
            raise UnsupportedPipelineError(f"{stack} needs prompts, and {type(pipe).__name__} has {has}")
    found = objectives(given)
    for part in stack.parts():
        for text in part.objectives:
            part.check_objective(found.find(text))
            if found.find(text).space == "pixels" and (reason := cannot_decode(pipe)):
                raise UnsupportedPipelineError(f"{part} steers by pictures, and {type(pipe).__name__} {reason}")
    if stack.differentiates:
        for denoiser in denoisers_of(pipe, family):
            check_backward(denoiser)
    networks = networks or {}
    for denoiser in denoisers_of(pipe, family) if stack.own_pass else ():
        edits.check_own_pass(denoiser, stack.own_pass)
    if shared := [edit for edit in stack.own_pass if edit.shared]:
        for module in (module for second in networks.values() for module in second.modules):
            edits.check_own_pass(module, shared)
    for edit in stack.own_pass:
        if edit.text and family.encode is None:
            raise UnsupportedPipelineError(f"{edit.kind} carries a negative text, and this pipeline encodes none")
    if stack.skips and family.sequential:
        raise UnsupportedPipelineError(
            f"{stack} leaves the network out at some steps, and {type(pipe).__name__} calls it for each condition by "
            "itself, which cannot be left out; take a plan without s"
        )
    for query in stack.asks():
        if query.model not in ("main", *networks):
            raise UnsupportedPipelineError(
                f"{stack} asks the network {query.model!r} for {str(query)!r}, and no network of that name was given"
                f"{nearest(query.model, networks)}; give it with --network {query.model}=FOLDER, in Python with "
                f"guide(..., networks={{{query.model!r}: NETWORK}})"
            )
        if query.perturbation:
            for denoiser in denoisers_of(pipe, family):
                edits.check(denoiser, query.perturbation)
