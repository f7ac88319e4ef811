"""What a metric is, and the kinds there are.

====================  ================================================================  ===========================
kind                  a number of                                                       example
====================  ================================================================  ===========================
`SampleMetric`        each image; a cell has their mean                                 ``saturation``, ``concept``
`PairMetric`          each image and the baseline's of the same prompt and seed         ``ssim``
`RecordMetric`        each record; a cell has their mean                                ``evaluations``
`PromptMetric`        each prompt, from those of its images; a cell has their mean      ``worst``
`SetMetric`           a set of images                                                   ``frechet``, ``diversity``
====================  ================================================================  ===========================

A number is compared with another only where the full names are equal: a full name has the feature extractor with its
resize filter and size, the reference, every parameter, and the number of samples where the value depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...guidance.errors import InputError
from ...guidance.fields import parameters
from ...guidance.rule import given, literal
from ...guidance.words import counted
from .. import extractors, references
from ..values import value_text

Images = NDArray[np.uint8]
"""Shape ``(N, H, W, 3)``, sRGB."""
Features = NDArray[np.float32]
"""Shape ``(N, D)``."""
Values = NDArray[np.float64]
"""Shape ``(N,)``; NaN for a sample that has no value."""
Rows = NDArray[np.int64]
"""Places of samples; one may come several times."""
Statistic = Callable[[Rows], float]
"""A metric over some of the samples that it was made from."""

Labels = Mapping[str, Sequence[str | None]]


class Metric:
    """A frozen dataclass whose fields are the metric's parameters; `register` gives it its name.

    Attributes:
        name: in sweeps, set by `register`.
        better: ``"up"``, ``"down"``, or ``"none"`` where neither is.
        range: the least and the greatest value there can be.
        fewest: samples below which a number comes with a warning.
        labels: names of the labels that a prompt must have.
        preference: whether it is a learnt judgement of images, which more colour and stronger guidance raise by
            themselves; see `analysis.trust`.
    """

    preference: ClassVar[bool] = False
    name: ClassVar[str] = ""
    better: ClassVar[str] = "none"
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    fewest: ClassVar[int] = 20
    labels: ClassVar[tuple[str, ...]] = ()

    @property
    def extractor(self) -> str | None:
        """What `extractors.load` reads, of the features that it needs; None if it needs none."""
        return None

    def __str__(self) -> str:
        """The text that `parse_metric` reads back."""
        written = ", ".join(f"{field.name}={literal(value)}" for field, value in given(self))
        return f"{self.name}({written})" if written else self.name

    @property
    def full_name(self) -> str:
        """The name under which numbers are kept and compared, without the number of samples.

        Raises:
            InputError: a file of the extractor or of the reference is not there.
        """
        parts = self.described()
        return f"{self.name}[{', '.join(parts)}]" if parts else self.name

    def named(self, samples: int, prompts: int = 1) -> str:
        """The full name of a number of so many samples, of so many prompts."""
        return self.full_name

    def lacks(self, labels: Collection[str], baseline: bool, images: bool) -> str:
        """What the metric needs and a sweep does not have, in words; "" if nothing.

        Args:
            labels: names of the labels that prompts of the sweep have.
            baseline: whether it names a cell that others are compared with.
            images: whether it keeps images.
        """
        if missing := [name for name in self.labels if name not in labels]:
            return (
                f"needs the label {missing[0]!r}, which no prompt has; use prompts: {{bundled: {{count: 8}}}}, or give "
                f"labels: {{{missing[0]}: ...}} with the prompts"
            )
        return ""

    def note(self, samples: int) -> str:
        """A note for a number of so many samples; "" if there are enough of them."""
        few = f"{counted(samples, 'sample')}; {self.fewest} are wanted at least"
        return few if samples < self.fewest else ""

    @property
    def compared(self) -> int:
        """Samples below which a difference between two cells tells nothing."""
        return self.fewest

    def described(self) -> list[str]:
        """The parts in the brackets of the full name: extractor, reference, and every other parameter."""
        parts = [extractors.full_name(self.extractor)] if self.extractor else []
        for one in parameters(self):
            value = getattr(self, one.name)
            if one.name == "reference":
                parts.append(f"reference={references.full_name(value)}")
            elif one.name != "extractor":
                parts.append(f"{one.name}={value_text(value)}")
        return parts


class SampleMetric(Metric):
    """A number of each image alone: what it is does not depend on the other images of the call.

    Attributes:
        share: whether the numbers are 0 and 1, and their mean a share.
    """

    share: ClassVar[bool] = False

    def measure(self, images: Images, labels: Labels, prompts: Sequence[str], features: Features | None) -> Values:
        """Measure N images.

        Args:
            images: N of one size.
            labels: for each name in `labels`, what each image was to show; None where that is not known.
            prompts: of each image.
            features: of `extractor`, a row for each image; None if the metric needs none.

        Raises:
            InputError: the images, the labels or a file do not suit the metric.
        """
        raise NotImplementedError


class PairMetric(Metric):
    """A number of each image and its counterpart: the baseline cell's image of the same prompt and seed."""

    @property
    def best(self) -> float:
        """The number of equal images: the end of the range that is better."""
        low, high = self.range
        return high if self.better == "up" else low

    def lacks(self, labels: Collection[str], baseline: bool, images: bool) -> str:
        """What a metric of pairs needs and a sweep does not have: labels, a baseline, or images; "" if nothing."""
        if not baseline:
            return "compares with a baseline; name one cell of the sweep as baseline: STACK"
        return super().lacks(labels, baseline, images) if images else "needs images, and none are kept; use images: png"

    def against(self, baseline: str) -> str:
        """The whole name of numbers that compare with the cell of this name."""
        return f"{self.name}[{', '.join([*self.described(), f'baseline={baseline}'])}]"

    def compare(self, images: Images, others: Images) -> Values:
        """Measure N images against their N counterparts of the same size.

        Raises:
            InputError: the images do not suit the metric.
        """
        raise NotImplementedError


class RecordMetric(Metric):
    """A metric that is the mean of a column of the records.

    Attributes:
        column: its name.
    """

    column: ClassVar[str] = ""


class PromptMetric(Metric):
    """A number of each prompt, made of another metric's numbers of its images, of all seeds; a cell has their mean."""

    @property
    def inner(self) -> SampleMetric:
        """The metric of single images that it is made of."""
        raise NotImplementedError

    def lacks(self, labels: Collection[str], baseline: bool, images: bool) -> str:
        """What the inner metric needs and a sweep does not have; "" if nothing."""
        return self.inner.lacks(labels, baseline, images)

    def reduce(self, values: Values) -> float:
        """The number of a prompt, from those of its images, of which none is NaN."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a cell as a set metric reads them.

    Args:
        features: of the metric's extractor, shape ``(N, D)``.
        prompts: a number for the prompt of each, shape ``(N,)``.
    """

    features: Features
    prompts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.features)


class TooFewError(InputError):
    """A set metric has no value for so few samples; the message says how many it needs."""


class SetMetric(Metric):
    """A number of a set of images, from their features.

    Attributes:
        counted: whether the expected value depends on the number of samples, which is then part of the name.
        share: whether it is the share of its images of which something is true, for each by itself.
    """

    counted: ClassVar[bool] = False
    share: ClassVar[bool] = False

    def named(self, samples: int, prompts: int = 1) -> str:
        """The full name of a number of so many samples, of so many prompts."""
        if not self.counted:
            return self.full_name
        return f"{self.name}[{', '.join([*self.described(), f'samples={samples}'])}]"

    def prepare(self, samples: Samples) -> Statistic:
        """The metric as a function of rows of `samples`; what is common to all sets of rows is computed once.

        Raises:
            TooFewError: it has no value for so few.
            InputError: the samples do not suit the metric, or its reference cannot be used.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class AgainstReference(SetMetric):
    """A metric that compares the features of images with those of a reference.

    Args:
        extractor: of the features.
        reference: what is compared with.
    """

    extractor: str = extractors.DEFAULT
    reference: str = references.EMOJI

    def lacks(self, labels: Collection[str], baseline: bool, images: bool) -> str:
        """What the metric needs and a sweep does not have, such as a reference of its own; "" if nothing."""
        if self.reference == references.EMOJI and "concept" not in labels:
            return (
                "compares with the pictures of the bundled model unless told otherwise, and no prompt has the label "
                f"'concept', as its prompts have; give {self.name}(reference='FOLDER'), a folder of pictures"
            )
        return super().lacks(labels, baseline, images)

    def target(self, samples: Samples) -> Features:
        """The reference's features, shape ``(M, D)``.

        Raises:
            InputError: they cannot be had, or `samples` have features of another network.
        """
        found = references.features(self.reference, self.extractor)
        if samples.features.shape[1] != found.shape[1]:
            raise InputError(
                f"features of {samples.features.shape[1]} numbers; those of the reference have {found.shape[1]}"
            )
        return found


def need(count: int, least: int, why: str) -> None:
    """Refuse fewer than `least` samples.

    Raises:
        TooFewError: there are fewer.
    """
    if count < least:
        raise TooFewError(f"{why} needs {least} samples at least; got {count}")
