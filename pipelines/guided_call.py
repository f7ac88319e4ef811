"""The arguments of a guided call: what the user gave, less what the stack decides, and what turns the conditions on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..guidance.errors import InputError, nearest, warn
from ..guidance.rule import Stack, remarks
from .arguments import checked
from .families.lookup import denoisers_of, signature_of
from .families.record import SCALE, Family, Pipeline
from .prompts import EXTRA, NULL, Prompts, asked, check_encoders, length_of_texts


def call_arguments(
    pipe: Pipeline, family: Family, stack: Stack, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], Prompts]:
    """The arguments to call a pipeline with under a stack, by name, and what is evaluated beside its prompt.

    Args:
        pipe: the pipeline.
        family: its record.
        stack: the stack.
        args: the user's arguments by position.
        kwargs: the user's arguments by name.

    Raises:
        InputError: an argument that the pipeline does not have, or one of another size than the prompts.
    """
    kwargs = dict(kwargs)
    extra, null = kwargs.pop(EXTRA, None), kwargs.pop(NULL, None)
    denoisers_of(pipe, family)  # refuse what it is not, before its configuration is read
    arguments = checked(_by_name(pipe, family, args, kwargs))
    embedded = family.embedded(pipe)
    _leave_out_owned(family, stack, arguments, embedded)
    if not embedded and arguments.get(SCALE) is not None:
        warn(f"{SCALE}={arguments[SCALE]!r} does nothing: this network was not distilled and does not take it")
    prompts = asked(pipe, family, stack, arguments, extra, null)
    for remark in (*prompts.remarks, *prompts.unused_weights(stack)):
        warn(remark)
    _same_batch(family, arguments)
    # A random condition is made from the prompt's rows: for it alone, no other half need be encoded and carried on.
    conditions = {query.condition for query in stack.asks()} - {"positive"}
    halves = any(not one.startswith("independent") for one in conditions)
    check_encoders(pipe, family, arguments, halves)
    if halves and (length := length_of_texts(pipe, family, arguments)):
        arguments["max_sequence_length"] = length
    for name in family.halved:
        if arguments.get(name) is not None:
            arguments[name] = _half(family, stack, name, arguments[name], halves)
    wanted = dict(family.guided if halves else family.unguided)
    if embedded:
        scale = arguments.get(embedded, signature_of(pipe).parameters[embedded].default)
        wanted[embedded] = scale
        if stack.asks():
            warn(
                f"this network was distilled from guided runs and takes their scale as an input: "
                f"{embedded}={scale:g} is embedded, and {stack} guides on top of it"
            )
    for remark in remarks(stack):
        warn(remark)
    if halves:
        prompt = arguments.get("prompt")
        for name, value in family.filled.items():
            if arguments.get(name) is None and arguments.get(f"{name}_embeds") is None:
                wanted[name] = [value] * len(prompt) if isinstance(prompt, list | tuple) else value
    # Some pipelines write into the lists that they are given.
    copied = {name: list(value) for name, value in arguments.items() if isinstance(value, list)}
    return {**arguments, **copied, **wanted}, prompts


def _by_name(pipe: Pipeline, family: Family, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a user gave, by name.

    Raises:
        InputError: the pipeline does not have one of them.
    """
    signature = signature_of(pipe)
    try:
        given = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{type(pipe).__name__}: {error}") from None
    arguments: dict[str, Any] = {}
    for name, value in given.arguments.items():
        kind = signature.parameters[name].kind
        more = kind is inspect.Parameter.VAR_KEYWORD
        if more and (unknown := sorted(set(value) - set(family.keywords))):
            known = [*signature.parameters, *family.keywords]
            raise InputError(f"{type(pipe).__name__} has no {unknown[0]!r}{nearest(unknown[0], known)}")
        arguments.update(value if more else {name: value})
    return arguments


def _leave_out_owned(family: Family, stack: Stack, arguments: dict[str, Any], embedded: str) -> None:
    """Take out the arguments that rules replace, with a warning for each that was given."""
    for name, rule in family.owned.items():
        if name in arguments and name != embedded and (value := arguments.pop(name)) is not None:
            instead = f"leave it out and put {rule} into the stack instead" if rule else "there is no rule for it yet"
            warn(f"{name}={value!r} was given to a guided pipeline and does nothing: what counts is {stack}; {instead}")


def _same_batch(family: Family, arguments: Mapping[str, Any]) -> None:
    """Refuse embeddings that are not as many as the prompts.

    Raises:
        InputError: they are not.
    """
    prompt, embeddings = arguments.get("prompt"), arguments.get("prompt_embeds")
    if prompt is None and embeddings is None:
        return
    prompts = len(prompt) if isinstance(prompt, list | tuple) else 1 if embeddings is None else len(embeddings)
    for name, value in arguments.items():
        if not name.endswith("prompt_embeds") or value is None:
            continue
        repeated = family.sequential and len(value) == 1  # a call of its own, whose network repeats it
        if len(value) != prompts and not repeated:
            raise InputError(f"{name} has {len(value)} rows for {prompts} prompts; give one for each prompt")


def _half(family: Family, stack: Stack, name: str, value: Any, guided: bool) -> Any:
    """Return the rows to use of an argument with a row for each half, if only the prompt's half may be evaluated.

    Args:
        family: the pipeline's record.
        stack: the stack, for the message.
        name: of the argument.
        value: a tensor, or a list of them.
        guided: whether all halves are evaluated.

    Raises:
        InputError: it has another number of rows.
    """
    if isinstance(value, list | tuple):
        return [_half(family, stack, name, one, guided) for one in value]
    halves, rows = family.halves, len(value)
    if rows == len(halves) and not guided:
        return value.chunk(rows)[halves.index("positive")]
    if rows != (len(halves) if guided else 1):
        order = f"one for each of {', '.join(halves)}" if guided else f"one for the prompt, or {len(halves)}"
        raise InputError(f"{name} has {rows} rows; {stack} on {family.pipeline} needs {order}")
    return value
