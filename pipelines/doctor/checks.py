"""The checks: each a question with an answer in a line, on runs of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..rows import take
from .diagnosis import FAIL, NOT_MADE, PASS, Outcome
from .runs import SCALE, Runs
from .watch import Seen

Answer = tuple[Outcome, str]


def check_gate(runs: Runs) -> Answer:
    """`guided`, `unguided` and `branches`: is the record right about when all halves are evaluated?"""
    halves = len(runs.family.halves)
    for run, evaluated, arguments in (
        (runs.plain, 1, "`unguided`"),
        (runs.gated, halves, "`guided`"),
        (runs.own, halves, f"{runs.family.scale}={SCALE:g}"),
    ):
        if run is None:
            continue
        rows = sum(one.rows for one in run.calls if one.step == 0)
        if rows != evaluated * runs.samples:
            return FAIL, (
                f"with {arguments} the denoiser gets {rows} rows in the first step for "
                f"{runs.samples} samples, expected {evaluated} for each"
            )
        if any(one.both != (evaluated > 1) for one in run.calls):
            return FAIL, (
                f"`branches` says {evaluated == 1} while the pipeline evaluates {evaluated} of {halves} halves"
            )
    if runs.own is None:
        return PASS, "1 row for each sample"
    return PASS, f"{halves} rows for each sample with guidance, 1 without, and the record knows which"


def check_calls(runs: Runs) -> Answer:
    """Does the pipeline call its denoiser as often as guide() expects?"""
    for run, wanted in ((runs.plain, 1), (runs.own, len(runs.family.halves) if runs.family.sequential else 1)):
        if run is None:
            continue
        counts = [sum(one.step == step for one in run.calls) for step in range(len(run.told))]
        if set(counts) != {wanted}:
            return FAIL, (
                f"the pipeline calls its denoiser {' + '.join(map(str, counts))} times in {len(counts)} steps, "
                f"expected {wanted} a step: `denoiser`, `others` or `sequential` is wrong, or it does more than a step"
            )
    return PASS, f"{len((runs.own or runs.plain).calls)} calls of the denoiser in {len(runs.plain.told)} steps"


def check_halves(runs: Runs) -> Answer:
    """Is the prompt where `halves` says?"""
    if runs.own is None:
        return NOT_MADE, runs.cannot
    family, batch = runs.family, runs.samples
    wanted = runs.plain.calls[0].arguments
    parts: list[Mapping[str, Any]] = []
    if family.sequential:
        parts = [one.arguments for one in runs.own.calls if one.step == 0]
    else:
        rows = runs.own.calls[0].arguments
        parts = [_chunk(runs, rows, slice(start * batch, (start + 1) * batch)) for start in range(len(family.halves))]
    found = [place for place, part in enumerate(parts) if all(_close(wanted[name], part[name]) for name in wanted)]
    if len(found) != 1:
        return NOT_MADE, "the prompt's rows are not told from the others': their lengths or values depend on these"
    place = family.halves.index("positive")
    if found != [place]:
        return FAIL, (
            f"the prompt is half {found[0]} of the pipeline's, counted from 0, and {family.halves!r} says {place}"
        )
    return PASS, f"the prompt is half {place}, as in {family.halves!r}"


def _chunk(runs: Runs, rows: Mapping[str, Any], index: slice) -> dict[str, Any]:
    family = runs.family
    return {name: take(value, index, family.axes.get(name, 0), name in family.listed) for name, value in rows.items()}


def _close(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape != two.shape:
            return False
        one, two = one.float(), two.float()  # masks are numbers too
        return not one.numel() or bool((one - two).abs().max() <= 1e-3 * one.abs().max())
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_close, one, two))
    return one is None and two is None


def check_time(runs: Runs) -> Answer:
    """`timestep` and `clock`: do they give the scheduler's timestep?"""
    run, family = runs.own or runs.plain, runs.family
    table = run.timesteps
    for one in run.calls:
        if one.time is None:
            return (
                FAIL,
                f"the denoiser is given no {family.timestep!r}: `timestep` names another argument than the time",
            )
        if table is None or one.step >= len(run.times):
            return NOT_MADE, "the scheduler has no table of timesteps"
        told = family.clock(runs.pipe, one.time)
        nearest = float(table[int((table.float() - told).abs().argmin())])
        far = abs(nearest - told) > 0.02 * max(1.0, abs(nearest))  # the time may have been rounded to half precision
        if far or abs(nearest - run.times[one.step]) > 1e-3:
            return (
                FAIL,
                f"`clock` makes {told:g} of {one.time:g} at step {one.step}, where it is {run.times[one.step]:g}",
            )
    return PASS, "the time that the denoiser is given is the scheduler's"


def check_sign(runs: Runs) -> Answer:
    """`negates`: does what the denoiser returns reach the scheduler with its sign?"""
    run, negates = runs.plain, runs.family.negates
    outputs = [one.output for one in run.calls if one.step == 0]
    told = run.told[0]
    if len(outputs) != 1 or not isinstance(told, Tensor) or outputs[0].ndim != told.ndim:
        return NOT_MADE, "the pipeline reshapes what its denoiser returns before the scheduler gets it"
    output = outputs[0].float()
    channels = min(output.shape[1], told.shape[1])
    output, told = output[: len(told), :channels], told[: len(output), :channels].float()
    if output.shape == told.shape:
        size = float(output.abs().max())
        signs = [sign for sign in (1, -1) if size and float((output - sign * told).abs().max()) <= 1e-2 * size]
        if signs == [-1 if negates else 1]:
            return PASS, "negated" if negates else "as it is"
        if signs:
            return FAIL, f"the scheduler gets {'' if signs == [1] else 'minus '}what it returns, and negates={negates}"
    return NOT_MADE, "the pipeline changes what its denoiser returns before the scheduler gets it"


def check_unguided(runs: Runs) -> Answer:
    """Is the empty stack the pipeline without guidance?"""
    guided, _ = runs.run("stack()", runs.without_negative)
    return _equal(runs, guided, runs.plain, "stack()", "the pipeline without guidance", runs.plain_call)


def check_cfg(runs: Runs) -> Answer:
    """Is the pipeline's own guidance the same through guide()?"""
    if runs.own is None:
        return NOT_MADE, runs.cannot
    what = f"its own guidance, {runs.family.scale}={SCALE:g}"
    if runs.exact:
        if runs.own.away(runs.plain) <= runs.least * runs.plain.size():
            return NOT_MADE, f"{what}, gives the same as none on these inputs: there is nothing to compare"
        return _equal(runs, runs.guided, runs.own, runs.stack, what, runs.own_call)
    return _near(runs, runs.guided, runs.own, runs.plain, f"{runs.stack} is {what},")


def _equal(runs: Runs, ours: Seen, stock: Seen, stack: str, what: str, call: Mapping[str, Any]) -> Answer:
    if (away := ours.away(stock)) == 0:
        return PASS, f"{stack} is {what}, to the bit"
    again = runs.stock(call).away(stock)
    if again:
        return (
            NOT_MADE,
            f"the pipeline does not repeat itself: {again:.2g} from call to call, {away:.2g} through guide()",
        )
    return FAIL, f"{stack} is not {what}: {_apart(away, stock)}"


def _near(runs: Runs, ours: Seen, wanted: Seen, without: Seen, what: str) -> Answer:
    """Whether two runs agree to rounding, if that is far less than what they share moves."""
    allowed, away, moved = runs.rounding * wanted.size(), ours.away(wanted), without.away(wanted)
    if away > allowed:
        return FAIL, f"{what} does not hold: {_apart(away, wanted)}"
    if moved < 4 * allowed:
        return (
            NOT_MADE,
            f"{what} is not told from rounding, of which there is {allowed:.2g} where guidance moves {moved:.2g}",
        )
    return PASS, f"{what} to rounding"


def _apart(away: float, of: Seen) -> str:
    if away == float("inf"):
        return "the shapes or the results differ"
    return f"{away:.3g} apart, where samples reach {of.size():.3g}"


def check_hook(runs: Runs) -> Answer:
    """Does guide() see every call?"""
    seen, report = runs.guided, runs.report
    if len(report.steps) != len(seen.told):
        return FAIL, f"the stack was evaluated {len(report.steps)} times in {len(seen.told)} steps"
    own = runs.own or runs.plain
    if runs.exact and len(seen.calls) != len(own.calls):
        return FAIL, f"the network was called {len(seen.calls)} times, {len(own.calls)} times by the pipeline itself"
    return PASS, f"the stack was evaluated in every one of {len(seen.told)} steps"


def check_evaluations(runs: Runs) -> Answer:
    """Is what the report counts what the network did?"""
    made = [(runs.stack, runs.guided, runs.report)]
    if runs.own is not None:
        made.append(("prefix(cfg(3), 1)", *runs.run("prefix(cfg(3), 1)")))  # two in the first step, then one
    said = []
    for stack, seen, report in made:
        calls, rows = len(seen.calls), sum(one.rows for one in seen.calls)
        if (report.calls, report.rows) != (calls, rows):
            return FAIL, (
                f"{stack}: the report has {report.calls} calls and {report.rows} rows, "
                f"the network had {calls} and {rows}"
            )
        if sum(report.evaluations) != rows or len(report.evaluations) != runs.samples:
            return (
                FAIL,
                f"{stack}: evaluations {report.evaluations} of {runs.samples} samples, the network had {rows} rows",
            )
        said.append(f"{stack} {rows}")
    steps, each = len(runs.guided.told), len(runs.family.halves) if runs.own is not None else 1
    begun = [record.index for record in runs.report.steps]
    first = begun.count(begun[0])  # some schedulers evaluate twice in a step
    for (stack, seen, _), wanted in zip(made, (each * steps, first + steps), strict=False):
        if (rows := sum(one.rows for one in seen.calls)) != wanted * runs.samples:
            return FAIL, f"{stack}: {rows} rows in {steps} steps of {runs.samples} samples, expected {wanted} for each"
    return PASS, f"rows counted and seen: {', '.join(said)}"


def check_rows(runs: Runs) -> Answer:
    """`rows`, `axes`, `listed`: does each condition of each sample, evaluated alone, give the same?"""
    alone, _ = runs.run(runs.stack, runs.stack_call, max_rows=1)
    without = _still(runs.plain) if runs.own is None else runs.plain
    return _near(runs, alone, runs.guided, without, "one row in each call gives the same")


def _still(run: Seen) -> Seen:
    return Seen(reached=[torch.zeros_like(one) for one in run.reached], result=run.result)


def check_prompts(runs: Runs) -> Answer:
    """`encode`, `completed`: are other prompts encoded as the pipeline encodes its own?"""
    if runs.own is None:
        return NOT_MADE, runs.cannot
    if runs.family.encode is None:
        return NOT_MADE, "its record has no `encode`: rules that ask for further prompts are refused"
    if runs.call.get("prompt") is None:
        return NOT_MADE, "the call has embeddings and no texts"
    against = f"cfg({SCALE:g}, against='null')"
    empty, _ = runs.run(against, runs.without_negative)
    said = "further prompts, empty or not, are encoded as the pipeline's own"
    if any("residual" in name or "controlnet" in name for name in runs.family.rows):
        said = "a further prompt is encoded as the pipeline's own (not the empty one: all get the prompt's residuals)"
    elif runs.call.get("negative_prompt") is not None:
        beside, _ = runs.run(against)
        negative, _ = runs.run(f"cfg({SCALE:g})")
        answer = _near(
            runs, beside, empty, negative, "the empty prompt beside a negative one is the pipeline's empty one"
        )
        if answer[0] != PASS:
            return answer
    # Of a further prompt Perp-Neg adds what is perpendicular to the prompt: of the prompt once more, nothing.
    again = {**runs.without_negative, "extra_prompt": runs.call["prompt"]}
    twice, _ = runs.run(f"perpneg({SCALE:g})", again)
    return _near(runs, twice, empty, runs.plain, said)


def check_untouched(runs: Runs) -> Answer:
    """Is the pipeline left as its own call leaves it?"""
    if left := runs.left:
        some = f"{', '.join(left[:4])}{' ...' if len(left) > 4 else ''}"
        return FAIL, f"a guided call leaves {some} otherwise than the pipeline's own"
    index = " and what is saved as model_index.json" if hasattr(runs.pipe, "to_json_string") else ""
    return PASS, f"components, types, methods, hooks, weights, attributes, scheduler{index}"


def check_exception(runs: Runs) -> Answer:
    """Is the pipeline left as it was found by a call that fails in the middle?"""
    first = sum(one.step == 0 for one in runs.guided.calls)
    if left := runs.broken(first):
        return FAIL, f"a guided call that fails at the second step leaves {', '.join(left[:4])} otherwise"
    again, _ = runs.run(runs.stack, runs.stack_call)
    if away := again.away(runs.guided):
        return FAIL, f"after a call that failed, the next is another: {_apart(away, runs.guided)}"
    return PASS, "a call that fails at the second step leaves nothing behind, and the next is the same to the bit"


GUIDED = ("hook", "evaluations", "untouched", "exception", "rows", "prompts")
"""Those that look at guided runs."""
CHECKS: dict[str, Callable[[Runs], Answer]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_gate,
        check_calls,
        check_halves,
        check_time,
        check_sign,
        check_unguided,
        check_cfg,
        check_hook,
        check_evaluations,
        check_untouched,
        check_exception,
        check_rows,
        check_prompts,
    )
}
"""In the order in which they are made."""
