"""What guidance does beside the network, counted: calls, rows, kernels, memory. No clock, hence the same everywhere.

A *pass* is a kernel that reads or writes as many numbers as the samples have; kernels over a number for each sample do
not count, nor do views. Counts are of one step: a run of four steps less one of three, less the same of the stock
pipeline. What is expected is not what was seen once but what a rule's formula takes; each part says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import guidestack as gs
from guidestack.guidance.prediction import EPSILON, Level
from guidestack.guidance.query import NULL, Network, Request, evaluate

BATCH = 2
NEGATIVES = ["x", "y", "z"]


class Counting(TorchDispatchMode):
    """Counts kernels outside of the network.

    Attributes:
        passes: by name.
        reads: passes that read what the network answered.
        allocated: numbers in new tensors, over those of the samples.
        calls: rows of each call of the network.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.passes: Counter[str] = Counter()
        self.reads, self.allocated = 0, 0.0
        self.calls: list[int] = []
        self.inside = False
        self.answers: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        view = returns and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)
        written = any(one.alias_info is not None and one.alias_info.is_write for one in returns)
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        made = [one for one in tree_leaves(output) if isinstance(one, Tensor)]
        if func.overloadpacket is torch.ops.aten.new_full:
            given = []  # only its type and device are looked at
        if self.inside or view or all(one.numel() < self.size for one in (*given, *made)):
            return output
        self.passes[func.overloadpacket.__name__] += 1
        answers = {one.untyped_storage().data_ptr() for one in self.answers}
        self.reads += any(one.untyped_storage().data_ptr() in answers for one in given)
        if not written:
            self.allocated += sum(one.numel() / self.size for one in made if one.numel() >= self.size)
        return output

    @contextmanager
    def over(self, unet: Any) -> Iterator[None]:
        """While the context lasts, what is outside of the network's calls counts."""
        forward = unet.forward

        def call(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.inside = True
            try:
                output = forward(sample, *args, **kwargs)
            finally:
                self.inside = False
            self.calls.append(len(sample))
            self.answers.append(output[0])  # kept, so that no other tensor gets its memory
            return output

        call.remembers = False  # type: ignore[attr-defined]
        unet.forward = call
        try:
            with self:
                yield
        finally:
            del unet.forward


@dataclass(frozen=True)
class Costs:
    """What one step costs beside the network.

    Args:
        passes: by name.
        reads: of the network's answers.
        allocated: in sizes of the samples.
        calls: rows of each call.
    """

    passes: Mapping[str, int]
    reads: int
    allocated: float
    calls: tuple[int, ...]


def step_of(pipe: Any, run: Callable[[int], object]) -> Costs:
    """One step of ``run(steps)``."""
    size = BATCH * pipe.unet.config.in_channels * pipe.unet.config.sample_size**2
    run(1)  # what is made once a process
    counts = []
    for steps in (3, 4):
        counting = Counting(size)
        with counting.over(pipe.unet):
            run(steps)
        counts.append(counting)
    three, four = counts
    passes = Counter(four.passes)
    passes.subtract(three.passes)
    return Costs(
        {name: count for name, count in passes.items() if count},
        four.reads - three.reads,
        four.allocated - three.allocated,
        tuple(four.calls[len(three.calls) :]),
    )


def given(steps: int) -> dict[str, Any]:
    generators = [torch.Generator().manual_seed(sample) for sample in range(BATCH)]
    return {"prompt": ["a cat", "red"], "num_inference_steps": steps, "generator": generators, "output_type": "latent"}


def parts(*of: str) -> Counter[str]:
    return sum((Counter(one.split()) for one in of), Counter())


CHECK = "sum"  # is every number finite? One pass, on the host
TEXTS = "cat clone"  # joined at each evaluation: a callback may have written into them
HALVES = "cat"  # the estimate into both halves of the answer, whose combination is then the identity
LINEAR = "sub mul_ add_"  # u + s (c - u), rounded as the pipelines round it: one new tensor, written twice more
DOT = "mul sum"  # products, not a matrix product, which may round to TF32
NORM = "linalg_vector_norm"
CONVERT = "mul add_"  # of_x * x + of_answer * answer


@dataclass(frozen=True)
class Case:
    """A rule, and what a step of it takes.

    Args:
        stack: its text.
        passes: beyond those of the stock pipeline, whose own combination goes on as before, over the estimate.
        allocated: sizes of the samples in new tensors, beyond the stock pipeline's.
        calls: rows of each call of the network.
        negatives: negative prompts of each sample.
        alone: whether the pipeline evaluates the prompt only, and so does the one that it is compared with.
        max_rows: of `guide`.
    """

    stack: str
    passes: Counter[str]
    allocated: float
    calls: tuple[int, ...] = (2 * BATCH,)
    negatives: int = 0
    alone: bool = False
    max_rows: int | None = None


def perp_neg(negatives: int) -> str:
    """e_p and each negative less the origin; these summed; their part along e_p; origin + scale * what is left."""
    away = "sub " * (1 + negatives) + "mul_ " + "add_ " * (negatives - 1)
    return f"{away}{DOT} {NORM} addcmul mul_ add_"


CASES = (
    # The estimate is the answer itself.
    Case("stack()", parts(CHECK), allocated=0, calls=(BATCH,), alone=True),
    # New: c - u, and the two halves.
    Case("cfg(4)", parts(LINEAR, CHECK, HALVES), allocated=1 + 2),
    Case("during(cfg(4), progress=(0, 1))", parts(LINEAR, CHECK, HALVES), allocated=1 + 2),
    # Pieces of whole conditions are views of what the pipeline made, and their answers are taken as they are.
    Case("cfg(4)", parts(LINEAR, CHECK, HALVES), allocated=1 + 2, calls=(BATCH, BATCH), max_rows=BATCH),
    # The deviations of the prompt's answer and of the estimate; estimate * ratio * phi + estimate * (1 - phi).
    Case("cfg(4) | rescale(0.7)", parts(LINEAR, "std std", "mul mul_ mul add_", CHECK, HALVES), allocated=1 + 2 + 2),
    # The prompt's denoised sample, c - u in it, their product and its square, d - share * denoised, estimate + that.
    # New: denoised, c - u, the product, two sums, the halves.
    Case(
        "apg(4)", parts(CONVERT, "sub mul_", DOT, NORM, "addcmul addcmul", CHECK, HALVES), allocated=1 + 1 + 1 + 2 + 2
    ),
    # And the sum of differences, in the new tensor, and its norm.
    Case(
        "apg(4, radius=2, momentum=-0.5)",
        parts(CONVERT, "sub mul_", "add_", NORM, DOT, NORM, "addcmul addcmul", CHECK, HALVES),
        allocated=1 + 1 + 1 + 2 + 2,
    ),
    # To the scheduler's sample is added alpha' (D - R), both in denoised samples; the pipeline keeps one sample.
    # New: the guided one, two conversions, their difference, alpha' times it, the sum, its copy, the halves.
    Case(
        "cfgpp(0.6)",
        parts(LINEAR, CONVERT, CONVERT, "sub mul add cat", CHECK, HALVES),
        allocated=1 + 2 + 1 + 1 + 1 + 1 + 2,
    ),
    # Two calls, since the network is another one; the weak answer is no half of the pipeline's.
    Case("tsg(4)", parts(LINEAR, CHECK), allocated=1, calls=(BATCH, BATCH), alone=True),
    # Half the square of |c/|c| - u/|u||, which is 1 - cosine, and the choice between guided and not.
    Case(
        "adaptive(cfg(4), threshold=2)",
        parts(NORM, "div", NORM, "div", "sub", NORM, LINEAR, "where", CHECK, HALVES),
        allocated=3 + 1 + 1 + 2,
    ),
    # The samples once for each condition (cat) in one call, and the texts, of which the empty one is repeated for each
    # sample (16 numbers of 16 channels, as many as a sample has). New: the samples less the pipeline's two, which it
    # makes in any case; the texts; e_p, the negative, the product, what is left of it, the halves.
    Case(
        "perpneg(4)",
        parts("cat", TEXTS, perp_neg(1), CHECK, HALVES),
        allocated=3 + 4 + 1 + 1 + 1 + 1 + 2,
        calls=(3 * BATCH,),
        negatives=1,
    ),
    Case(
        "perpneg(4)",
        parts("cat", TEXTS, perp_neg(3), CHECK, HALVES),
        allocated=5 + 6 + 1 + 3 + 1 + 1 + 2,
        calls=(5 * BATCH,),
        negatives=3,
    ),
    # Two of five conditions in a call: the first two as the pipeline made them, the next two put together.
    Case(
        "perpneg(4)",
        parts("cat", TEXTS, perp_neg(3), CHECK, HALVES),
        allocated=2 + 3 + 1 + 3 + 1 + 1 + 2,
        calls=(2 * BATCH, 2 * BATCH, BATCH),
        negatives=3,
        max_rows=2 * BATCH,
    ),
)


def guided_step(pipe: Any, case: Case) -> Costs:
    """One step under the case's stack."""
    guided = gs.guide(pipe, case.stack, max_rows=case.max_rows)
    more = {"negative_prompt": [NEGATIVES[: case.negatives]] * BATCH} if case.negatives else {}
    return step_of(pipe, lambda steps: guided(**given(steps), **more))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stack}, {case.negatives}, {case.max_rows}")
def test_a_step_costs_what_its_formula_takes(pipe: Any, case: Case) -> None:
    ours = guided_step(pipe, case)
    theirs = step_of(pipe, lambda steps: pipe(guidance_scale=1.0 if case.alone else 4.0, **given(steps)))
    beyond = Counter(ours.passes)
    beyond.subtract(theirs.passes)
    assert {name: count for name, count in beyond.items() if count} == dict(case.passes)
    assert ours.allocated - theirs.allocated == case.allocated
    assert ours.calls == case.calls


# Two over both answers: c - u, and u once more. Three where one is projected on the other: it is read by itself too.
READS = {"cfg(4)": 2, "cfg(4) | rescale(0.7)": 3, "apg(4)": 3, "apg(4, radius=2, momentum=-0.5)": 3}


@pytest.mark.parametrize(("stack", "reads"), READS.items())
def test_answers_are_read_as_few_times_as_can_be(pipe: Any, stack: str, reads: int) -> None:
    assert guided_step(pipe, Case(stack, Counter(), 0)).reads == reads


def test_perp_neg_reads_the_origin_for_each_negative(pipe: Any) -> None:
    # c - u and each n - u, and u once more.
    for negatives in (1, 3):
        assert guided_step(pipe, Case("perpneg(4)", Counter(), 0, negatives=negatives)).reads == 2 + negatives


def test_a_stopped_sample_is_not_evaluated_and_costs_no_pass_over_the_others(pipe: Any) -> None:
    """Rows beside one another are views of what the pipeline made."""
    size = BATCH * pipe.unet.config.in_channels * pipe.unet.config.sample_size**2
    ours, theirs = Counting(size), Counting(size)
    guided = gs.guide(pipe, "adaptive(cfg(4), threshold=0.5)")
    with ours.over(pipe.unet), pytest.warns(gs.GuidestackWarning, match="stopped guiding every sample"):
        guided(**given(3))
    with theirs.over(pipe.unet):
        pipe(guidance_scale=4.0, **given(3))
    assert ours.calls == [4, 2, 2]  # all stop at the first step: a random network answers all prompts alike
    assert ours.passes["index"] == theirs.passes["index"]  # the scheduler's tables


class Ready(Network):
    """Has its answers ready, so that what is counted is what is around it."""

    parameterization = EPSILON
    conditions = ("null", "positive")

    def __init__(self, size: int) -> None:
        self.answers = torch.randn(size, 64)

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        return [self.answers if one.rows is None else self.answers[: len(one.rows)] for one in requests]


@pytest.mark.parametrize(
    ("wanted", "max_rows", "passes"),
    [
        ([True, True, True], None, []),
        ([False, False, False], None, []),
        ([True, False, True], None, ["clone", "index_copy_"]),  # over a copy of the prompt's answers
        ([True, True, True], 2, ["cat", "cat"]),  # of each condition's pieces: null 2 + 1, positive 1 + 2
        ([True, True, True], 3, []),
    ],
)
def test_answers_are_put_together_in_as_few_passes_as_can_be(
    wanted: list[bool], max_rows: int | None, passes: list[str]
) -> None:
    network, x = Ready(3), torch.randn(3, 64)
    counting = Counting(64)
    with counting:
        evaluate(network, {NULL: torch.tensor(wanted)}, x, Level.ve(1.0), max_rows=max_rows)
    assert counting.passes == Counter(passes)


def test_conditions_are_joined_once_a_step(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[tuple[int, ...]] = []
    original = torch.cat

    def cat(tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        output = original(tensors, *args, **kwargs)
        joined.append(tuple(output.shape))
        return output

    guided = gs.guide(pipe, "perpneg(4)")
    more = {"negative_prompt": [NEGATIVES] * BATCH}
    monkeypatch.setattr(torch, "cat", cat)
    guided(**given(4), **more)
    text = (5 * BATCH, 16, 16)
    assert joined.count(text) == 4
    assert joined.count((5 * BATCH, 4, 8, 8)) == 4  # the samples at every step


def test_a_run_looks_for_the_time_embedding_once(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from guidestack.pipelines import prepared

    looked: list[Any] = []
    original: Callable[[Any], Any] = prepared.architecture

    def architecture(module: Any) -> Any:
        looked.append(module)
        return original(module)

    guided = gs.guide(pipe, "tsg(3)")
    monkeypatch.setattr(prepared, "architecture", architecture)
    guided(**given(4))
    assert len(looked) == 1
