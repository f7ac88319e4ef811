"""The checks: each a question with an answer in a line, on runs of the bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..rows import take
from .bench import SCALE, Bench
from .diagnosis import FAIL, NOT_MADE, PASS, Outcome
from .watch import Seen

Answer = tuple[Outcome, str]


def gate(bench: Bench) -> Answer:
    """`guided`, `unguided` and `branches`: is the record right about when all halves are evaluated?"""
    halves = len(bench.family.halves)
    for run, evaluated, arguments in (
        (bench.plain, 1, "`unguided`"),
        (bench.gated, halves, "`guided`"),
        (bench.own, halves, f"{bench.family.scale}={SCALE:g}"),
    ):
        if run is None:
            continue
        rows = sum(one.rows for one in run.calls if one.step == 0)
        if rows != evaluated * bench.samples:
            return FAIL, (
                f"with {arguments} the denoiser gets {rows} rows in the first step for "
                f"{bench.samples} samples, expected {evaluated} for each"
            )
        if any(one.both != (evaluated > 1) for one in run.calls):
            return FAIL, (
                f"`branches` says {evaluated == 1} while the pipeline evaluates {evaluated} of {halves} halves"
            )
    if bench.own is None:
        return PASS, "1 row for each sample"
    return PASS, f"{halves} rows for each sample with guidance, 1 without, and the record knows which"


def calls(bench: Bench) -> Answer:
    """Does the pipeline call its denoiser as often as guide() expects?"""
    for run, wanted in ((bench.plain, 1), (bench.own, len(bench.family.halves) if bench.family.sequential else 1)):
        if run is None:
            continue
        counts = [sum(one.step == step for one in run.calls) for step in range(len(run.told))]
        if set(counts) != {wanted}:
            return FAIL, (
                f"the pipeline calls its denoiser {' + '.join(map(str, counts))} times in {len(counts)} steps, "
                f"expected {wanted} a step: `denoiser`, `others` or `sequential` is wrong, or it does more than a step"
            )
    return PASS, f"{len((bench.own or bench.plain).calls)} calls of the denoiser in {len(bench.plain.told)} steps"


def halves(bench: Bench) -> Answer:
    """Is the prompt where `halves` says?"""
    if bench.own is None:
        return NOT_MADE, bench.cannot
    family, batch = bench.family, bench.samples
    wanted = bench.plain.calls[0].arguments
    parts: list[Mapping[str, Any]] = []
    if family.sequential:
        parts = [one.arguments for one in bench.own.calls if one.step == 0]
    else:
        rows = bench.own.calls[0].arguments
        parts = [_chunk(bench, rows, slice(start * batch, (start + 1) * batch)) for start in range(len(family.halves))]
    found = [place for place, part in enumerate(parts) if all(_alike(wanted[name], part[name]) for name in wanted)]
    if len(found) != 1:
        return NOT_MADE, "the prompt's rows are not told from the others': their lengths or values depend on these"
    place = family.halves.index("positive")
    if found != [place]:
        return FAIL, (
            f"the prompt is half {found[0]} of the pipeline's, counted from 0, and {family.halves!r} says {place}"
        )
    return PASS, f"the prompt is half {place}, as in {family.halves!r}"


def _chunk(bench: Bench, rows: Mapping[str, Any], index: slice) -> dict[str, Any]:
    family = bench.family
    return {name: take(value, index, family.axes.get(name, 0), name in family.listed) for name, value in rows.items()}


def _alike(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape != two.shape:
            return False
        one, two = one.float(), two.float()  # masks are numbers too
        return not one.numel() or bool((one - two).abs().max() <= 1e-3 * one.abs().max())
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_alike, one, two))
    return one is None and two is None


def time(bench: Bench) -> Answer:
    """`timestep` and `clock`: do they give the scheduler's timestep?"""
    run, family = bench.own or bench.plain, bench.family
    table = run.timesteps
    for one in run.calls:
        if one.time is None:
            return (
                FAIL,
                f"the denoiser is given no {family.timestep!r}: `timestep` names another argument than the time",
            )
        if table is None or one.step >= len(run.times):
            return NOT_MADE, "the scheduler has no table of timesteps"
        told = family.clock(bench.pipe, one.time)
        nearest = float(table[int((table.float() - told).abs().argmin())])
        far = abs(nearest - told) > 0.02 * max(1.0, abs(nearest))  # the time may have been rounded to half precision
        if far or abs(nearest - run.times[one.step]) > 1e-3:
            return (
                FAIL,
                f"`clock` makes {told:g} of {one.time:g} at step {one.step}, where it is {run.times[one.step]:g}",
            )
    return PASS, "the time that the denoiser is told is the scheduler's"


def sign(bench: Bench) -> Answer:
    """`negates`: does what the denoiser returns reach the scheduler with its sign?"""
    run, negates = bench.plain, bench.family.negates
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


def unguided(bench: Bench) -> Answer:
    """Is the empty stack the pipeline without guidance?"""
    guided, _ = bench.run("stack()", bench.without_negative)
    return _equal(bench, guided, bench.plain, "stack()", "the pipeline without guidance", bench.plain_call)


def cfg(bench: Bench) -> Answer:
    """Is the pipeline's own guidance the same through guide()?"""
    if bench.own is None:
        return NOT_MADE, bench.cannot
    what = f"its own guidance, {bench.family.scale}={SCALE:g}"
    if bench.exact:
        if bench.own.away(bench.plain) <= bench.least * bench.plain.size():
            return NOT_MADE, f"{what}, gives the same as none on these inputs: there is nothing to compare"
        return _equal(bench, bench.guided, bench.own, bench.stack, what, bench.own_call)
    return _near(bench, bench.guided, bench.own, bench.plain, f"{bench.stack} is {what},")


def _equal(bench: Bench, ours: Seen, stock: Seen, stack: str, what: str, call: Mapping[str, Any]) -> Answer:
    if (away := ours.away(stock)) == 0:
        return PASS, f"{stack} is {what}, to the bit"
    again = bench.stock(call).away(stock)
    if again:
        return (
            NOT_MADE,
            f"the pipeline does not repeat itself: {again:.2g} from call to call, {away:.2g} through guide()",
        )
    return FAIL, f"{stack} is not {what}: {_apart(away, stock)}"


def _near(bench: Bench, ours: Seen, wanted: Seen, without: Seen, what: str) -> Answer:
    """Whether two runs agree to rounding, if that is far less than what they share moves."""
    allowed, away, moved = bench.rounding * wanted.size(), ours.away(wanted), without.away(wanted)
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


def hook(bench: Bench) -> Answer:
    """Does guide() see every call?"""
    seen, report = bench.guided, bench.report
    if len(report.steps) != len(seen.told):
        return FAIL, f"the stack was evaluated {len(report.steps)} times in {len(seen.told)} steps"
    own = bench.own or bench.plain
    if bench.exact and len(seen.calls) != len(own.calls):
        return FAIL, f"the network was called {len(seen.calls)} times, {len(own.calls)} times by the pipeline itself"
    return PASS, f"the stack was evaluated in every one of {len(seen.told)} steps"


def evaluations(bench: Bench) -> Answer:
    """Is what the report counts what the network did?"""
    runs = [(bench.stack, bench.guided, bench.report)]
    if bench.own is not None:
        runs.append(("prefix(cfg(3), 1)", *bench.run("prefix(cfg(3), 1)")))  # two in the first step, then one
    said = []
    for stack, seen, report in runs:
        calls, rows = len(seen.calls), sum(one.rows for one in seen.calls)
        if (report.calls, report.rows) != (calls, rows):
            return FAIL, (
                f"{stack}: the report has {report.calls} calls and {report.rows} rows, "
                f"the network had {calls} and {rows}"
            )
        if sum(report.evaluations) != rows or len(report.evaluations) != bench.samples:
            return (
                FAIL,
                f"{stack}: evaluations {report.evaluations} of {bench.samples} samples, the network had {rows} rows",
            )
        said.append(f"{stack} {rows}")
    steps, each = len(bench.guided.told), len(bench.family.halves) if bench.own is not None else 1
    begun = [record.index for record in bench.report.steps]
    first = begun.count(begun[0])  # some schedulers evaluate twice in a step
    for (stack, seen, _), wanted in zip(runs, (each * steps, first + steps), strict=False):
        if (rows := sum(one.rows for one in seen.calls)) != wanted * bench.samples:
            return FAIL, f"{stack}: {rows} rows in {steps} steps of {bench.samples} samples, expected {wanted} for each"
    return PASS, f"rows counted and seen: {', '.join(said)}"


def rows(bench: Bench) -> Answer:
    """`rows`, `axes`, `listed`: does each condition of each sample, evaluated alone, give the same?"""
    alone, _ = bench.run(bench.stack, bench.stack_call, max_rows=1)
    without = _still(bench.plain) if bench.own is None else bench.plain
    return _near(bench, alone, bench.guided, without, "one row in each call gives the same")


def _still(run: Seen) -> Seen:
    return Seen(reached=[torch.zeros_like(one) for one in run.reached], result=run.result)


def prompts(bench: Bench) -> Answer:
    """`encode`, `completed`: are other prompts encoded as the pipeline encodes its own?"""
    if bench.own is None:
        return NOT_MADE, bench.cannot
    if bench.family.encode is None:
        return NOT_MADE, "its record has no `encode`: rules that ask for further prompts are refused"
    if bench.call.get("prompt") is None:
        return NOT_MADE, "the call has embeddings and no texts"
    against = f"cfg({SCALE:g}, against='null')"
    empty, _ = bench.run(against, bench.without_negative)
    said = "further prompts, empty or not, are encoded as the pipeline's own"
    if any("residual" in name or "controlnet" in name for name in bench.family.rows):
        said = "a further prompt is encoded as the pipeline's own (not the empty one: all get the prompt's residuals)"
    elif bench.call.get("negative_prompt") is not None:
        beside, _ = bench.run(against)
        negative, _ = bench.run(f"cfg({SCALE:g})")
        answer = _near(
            bench, beside, empty, negative, "the empty prompt beside a negative one is the pipeline's empty one"
        )
        if answer[0] != PASS:
            return answer
    # Of a further prompt Perp-Neg adds what is perpendicular to the prompt: of the prompt once more, nothing.
    again = {**bench.without_negative, "extra_prompt": bench.call["prompt"]}
    twice, _ = bench.run(f"perpneg({SCALE:g})", again)
    return _near(bench, twice, empty, bench.plain, said)


def untouched(bench: Bench) -> Answer:
    """Is the pipeline left as its own call leaves it?"""
    if left := bench.left:
        return (
            FAIL,
            f"a guided call leaves {', '.join(left[:4])}{' ...' * (len(left) > 4)} otherwise than the pipeline's own",
        )
    index = " and what is saved as model_index.json" * hasattr(bench.pipe, "to_json_string")
    return PASS, f"components, types, methods, hooks, weights, attributes, scheduler{index}"


def exception(bench: Bench) -> Answer:
    """And by a call that fails in the middle?"""
    first = sum(one.step == 0 for one in bench.guided.calls)
    if left := bench.broken(first):
        return FAIL, f"a guided call that fails at the second step leaves {', '.join(left[:4])} otherwise"
    again, _ = bench.run(bench.stack, bench.stack_call)
    if away := again.away(bench.guided):
        return FAIL, f"after a call that failed, the next is another: {_apart(away, bench.guided)}"
    return PASS, "a call that fails at the second step leaves nothing behind, and the next is the same to the bit"


GUIDED = ("hook", "evaluations", "untouched", "exception", "rows", "prompts")
"""Those that look at guided runs."""
CHECKS: dict[str, Callable[[Bench], Answer]] = {
    "gate": gate,
    "calls": calls,
    "halves": halves,
    "time": time,
    "sign": sign,
    "unguided": unguided,
    "cfg": cfg,
    "hook": hook,
    "evaluations": evaluations,
    "untouched": untouched,
    "exception": exception,
    "rows": rows,
    "prompts": prompts,
}
"""In the order in which they are made."""
