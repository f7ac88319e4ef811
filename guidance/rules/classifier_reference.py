"""Classifier-reference guidance: away from the class that a picture is most likely mistaken for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import RuleError
from ..fetched import Fetched
from ..fields import number, set_field
from ..notation.registry import register
from ..objective import check_text
from ..query import NEGATIVE, POSITIVE, Predictions, Queries, Query
from ..rule import Rule
from ..steering import check_objectives
from ..step import Estimate, Run, Step

GFCG_2024 = """@article{gfcg2024,
  title   = {Gradient-Free Classifier Guidance for Diffusion Model Sampling},
  journal = {arXiv preprint arXiv:2411.15393},
  year    = {2024}
}"""


class Referred(NamedTuple):
    """What the rule remembers from one evaluation to the next.

    Attributes:
        chosen: the number of each sample's reference, shape ``(B,)``; None before the first evaluation.
        sent: the same on the way to the host.
    """

    chosen: Tensor | None = None
    sent: Fetched | None = None


@register(
    "classifier_reference",
    references=(GFCG_2024,),
    example="classifier_reference(3, 'blue', ('red', 'green'))",
)
@dataclass(frozen=True)
class ClassifierReference(Rule[Referred]):
    r"""Classifier-reference guidance: guide away from the class that the picture is most likely mistaken for.

    .. math::
        \tilde D = D_r + w\,(D_c - D_r),\qquad w = 1 + (s - 1)\,(1 - p_c)^{q},\qquad
        p_k = \frac{f_k(D_c)}{f_c(D_c) + \sum_j f_j(D_c)}

    c is the prompt, and each of the negative prompts j is a reference, whose class has an objective :math:`f_j`. r is
    the reference with the largest :math:`p_j` at the evaluation before. The more probable the prompt's class, the
    weaker the guidance; at :math:`p_c = 1` there is none. No gradient is taken of the objectives. On an estimate that
    earlier rules improved it adds :math:`(w - 1)(D_c - D_r)`.

    It has the shape of GFCG, which also takes a reference class and a scale from a classifier at each step; which law
    its scale follows is not known here, and this is not that method. Another choice or law is a subclass with its own
    `choose` or `weights`.

    Args:
        scale: s, any number up to 1e6 in size; 1 is off.
        objective: the text of the objective of the prompt's class, ``"emoji('cat face')"``.
        references: the texts of those of the references, one for each negative prompt and in their order; one text for
            one. A sample with fewer negative prompts has the first ones: a batch may mix them.
        power: q >= 0; 0 guides by s whatever the classifier says.

    Queries: "positive", and of each sample the reference that was chosen for it; at the first evaluation of a run, of
    which nothing is known before, each reference. Each objective is evaluated once at each evaluation, forwards.

    State: the reference of each sample. Reading it waits for the device once an evaluation where there are several.
    Space: any, since the weights sum to one. Traces ``confidence``, :math:`p_c`, and ``reference``, the number of r.

    References:
        "Gradient-Free Classifier Guidance for Diffusion Model Sampling", arXiv:2411.15393, for the shape.

    >>> from guidestack import ClassifierReference
    >>> print(ClassifierReference(3, "emoji('cat face')", ("emoji('dog face')", "emoji('fox')")))
    classifier_reference(3, "emoji('cat face')", ("emoji('dog face')", "emoji('fox')"))
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0}
    data_dependent: ClassVar[bool] = True  # which reference is asked for

    scale: float
    objective: str
    references: str | tuple[str, ...]
    power: float = 1.0

    def __post_init__(self) -> None:
        number(self, "scale")
        set_field(self, "objective", check_text(self.objective))
        several = isinstance(self.references, tuple | list)
        found = tuple(check_text(one) for one in (self.references if several else (self.references,)))
        if not found:
            raise RuleError(
                "ClassifierReference: references must be one objective at least, one for each negative prompt"
            )
        set_field(self, "references", found if len(found) > 1 else found[0])
        number(self, "power", 0)

    @property
    def named(self) -> tuple[str, ...]:
        """The texts of the references' objectives."""
        return self.references if isinstance(self.references, tuple) else (self.references,)

    @property
    def objectives(self) -> tuple[str, ...]:
        """The texts of all its objectives, that of the prompt first."""
        return (self.objective, *self.named)

    @property
    def weight_counts(self) -> Mapping[str, int]:
        """How many negative prompts the rule needs, if it needs several; a single one may be the empty prompt."""
        return {"negative": len(self.named)} if len(self.named) > 1 else {}

    @property
    def guides(self) -> bool:
        """Whether the rule changes the estimate: whether the scale is not 1."""
        return self.scale != 1

    def init(self, run: Run) -> Referred:
        """Look up the objectives, and return the state before the first step, in which no reference is chosen.

        Raises:
            InputError: there is no such objective.
            RuleError: a sample has more negative prompts than there are references.
            UnsupportedError: the loop hands rules no objectives.
        """
        check_objectives(self, run)
        if (most := max(run.negatives, default=1)) > len(self.named):
            raise RuleError(f"{self} has {len(self.named)} references for {most} negative prompts; give one for each")
        return Referred()

    def _counts(self, run: Run) -> tuple[int, ...]:
        """How many references each sample has. One is there without a negative prompt: the empty prompt."""
        return (1,) * run.batch if len(self.named) == 1 else run.negatives or (1,) * run.batch

    def _query(self, index: int) -> Query:
        return Query(f"negative:{index}") if len(self.named) > 1 else NEGATIVE

    def asks(self) -> frozenset[Query]:
        """The prompt and the references."""
        several = Query("negative:each") if len(self.named) > 1 else NEGATIVE
        return frozenset({POSITIVE, several}) if self.guides else frozenset()

    def queries(self, step: Step, state: Referred) -> Queries:
        """The prompt, and each reference for the samples that it was chosen for."""
        if not self.guides:
            return {}
        asked: dict[Query, Tensor | None] = {POSITIVE: None}
        counts = self._counts(step.run)
        for index in range(max(counts)):
            rows = step.run.mask(index < count for count in counts)
            if state.sent is not None and max(counts) > 1:
                rows = rows & (state.sent.value == index)
            if bool(rows.any()):
                asked[self._query(index)] = None if bool(rows.all()) else rows
        return asked

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: Referred
    ) -> tuple[Estimate, Referred]:
        """The estimate moved away from each sample's reference, and the references of the next evaluation."""
        if not self.guides or not (most := max(self._counts(step.run))):
            return estimate, state
        c = predictions[POSITIVE]
        if step.run.objectives is None:  # a plan
            nothing = torch.zeros(step.run.batch, dtype=torch.long)
            return estimate, Referred(nothing, Fetched(nothing))
        with torch.no_grad():
            x0 = c.denoised.detach()
            values = torch.stack([step.run.objectives.find(text)(x0) for text in self.objectives[: most + 1]], 1)
        there = torch.tensor([[index <= count for index in range(most + 1)] for count in self._counts(step.run)])
        likely = values.masked_fill(~there.to(values.device, non_blocking=True), -torch.inf).log_softmax(1)
        chosen, confidence = self.choose(likely[:, 1:]), likely[:, 0].exp()
        now = chosen if state.chosen is None else state.chosen
        away = torch.zeros_like(c.minus(c, "any"))
        asked = self.queries(step, state)
        for index in range(most):
            if (query := self._query(index)) in asked:
                mine = (now == index).reshape(-1, *[1] * (away.ndim - 1))
                away = torch.where(mine, c.minus(predictions[query], "any"), away)
        traces = {"confidence": confidence, "reference": now.to(confidence.dtype)}
        more = (self.weights(confidence) - 1).to(away.dtype).reshape(-1, *[1] * (away.ndim - 1))
        return estimate.plus("native", away, 1.0, more, **traces), Referred(chosen, Fetched(chosen))

    def choose(self, likely: Tensor) -> Tensor:
        """Choose the reference of each sample; returns its number, shape ``(B,)``.

        Args:
            likely: the log-probability of each reference, shape ``(B, references)``; minus infinity of one for which a
                sample has no negative prompt.
        """
        return likely.argmax(1)

    def weights(self, confidence: Tensor) -> Tensor:
        """Return the scale w of each sample, shape ``(B,)``.

        Args:
            confidence: the probability of the prompt's class, shape ``(B,)``.
        """
        return 1 + (self.scale - 1) * (1 - confidence) ** self.power
