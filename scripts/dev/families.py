"""The table of docs/family-rules.md: which rules run on which pipelines.

Every cell is a run of a tiny random pipeline, which the tests make on the spot: it needs the source tree, no network.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...guidance.errors import InputError
from ...guidance.move import Move
from ...guidance.notation.registry import rules
from ...guidance.notation.text import parse
from ...guidance.rule import Wrapper
from ...guidance.words import lettered
from ...pipelines.doctor.trials import trial

Arguments = Callable[[], dict[str, Any]]


def columns() -> tuple[list[str], list[str], list[str]]:
    """The examples of the rules that a cell is made for, the names of the rules that run where these do, and moves."""
    texts, others, moves = [], [], []
    for entry in rules():
        if issubclass(entry.rule, Move):
            moves.append(entry.name)
            continue
        alone = [text for text in entry.examples if len(parse(text).rules) == 1]
        if alone and (not issubclass(entry.rule, Wrapper) or parse(alone[0]).own_pass):
            texts += alone
        else:
            others.append(entry.name)
    return texts, others, moves


HEAD = """# Which rules run on which pipelines

Made by `make tables`; a test holds it to what the code does. Every
cell was run on a tiny random pipeline of that class, for one prompt and, where the pipeline takes one, a negative
prompt; a weak network is there, a copy of its own. A cell has the network evaluations of a step, or the letter of the
reason for which it is refused. What wraps or reshapes other rules runs where these do:
{others}.
[Moves](moves.md) run on all of these pipelines, under schedulers that evaluate once a step and remember nothing:
{moves}. Of them `fsg`, and `recur` with a length, look at other
levels of the sampler, and not where a pipeline gives its network a time for each token (LTX-Video from pictures,
Wan 2.2 5B); `recur` and `zigzag` take steps of the sampler, and not where it is handed other samples than the
network (both, from pictures).
"""


def pipelines() -> Iterator[tuple[str, Any, Arguments]]:
    """The tiny pipelines of the tests that have a record: name, pipeline, and fresh arguments of a call.

    Raises:
        InputError: the tests are not there.
    """
    try:
        tiny = importlib.import_module("guidestack.tests.pipelines.tiny")
        shared = importlib.import_module("guidestack.tests.conftest")
    except ImportError as error:
        raise InputError(f"the tiny pipelines are in the tests of the source tree: {error}") from error
    from ...pipelines.families.record import FAMILIES

    common = {"num_inference_steps": 2}
    text = {"prompt": "a cat", "negative_prompt": "dog", "output_type": "latent"}
    yield "StableDiffusionPipeline", shared.make_stable_diffusion(), lambda: {**common, **text}
    for name in tiny.PIPELINES:
        if name.partition(",")[0] in FAMILIES:
            builder = tiny.load(name)
            yield name, builder.make(), functools.partial(builder.arguments, 1, True)
    yield "DiTPipeline", shared.make_dit(), lambda: {**common, "class_labels": [1], "output_type": "np"}
    for name in ("DDPMPipeline", "DDIMPipeline"):
        yield name, shared.make_unconditional(name), lambda: {**common, "output_type": "np"}


def markdown(found: Iterable[tuple[str, Any, Arguments]]) -> str:
    """The text of docs/family-rules.md."""
    texts, *names = columns()
    others, moves = (", ".join(f"`{name}`" for name in some) for some in names)
    head = HEAD.format(others=others, moves=moves)
    lines = [f"| | {' | '.join(f'`{text}`' for text in texts)} |"]
    lines.append("|---" * (len(texts) + 1) + "|")
    letters: dict[str, str] = {}
    for name, pipe, arguments in found:
        cells = []
        for text in texts:
            tried = trial(pipe, text, arguments, {"weak": pipe})
            letter = letters.setdefault(tried.reason, lettered(len(letters))) if tried.reason else ""
            cells.append(f"*{letter}*" if letter else str(tried.evaluations))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([head, *lines, "", *(f"* *{letter}*: {reason}" for reason, letter in letters.items())]) + "\n"
