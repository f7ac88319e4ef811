"""View-dependent weights of Perp-Neg for text-to-3D: which views a camera asks for, and which it must avoid.

Rendered from all sides, an object made by a text-to-image model tends to get a face on every side (the Janus problem).
Against it the prompt follows the camera: its embedding is blended from those of "…, front view", "…, side view" and
"…, back view", while the front and the side view are negative prompts of a strength that depends on the camera too.
Two sets of strengths are in use; `views` gives both.

Plain numbers, no tensors: a call takes a few microseconds and evaluates no network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ....guidance.errors import RuleError, nearest, shown
from ....guidance.fields import is_number, number, plain, set_field

POSITIVE_VIEWS = ("front", "side", "back")
"""The views whose embeddings are blended, in the order of `ViewWeights.positive`."""

NEGATIVE_VIEWS = ("front", "side")
"""The views that are negative prompts, in the order of `ViewWeights.negative`. The back view never is one."""

QUARTER = 90.0  # degrees from the front to the side, and from the side to the back


@dataclass(frozen=True)
class ViewWeights:
    """What `views` answers for one camera.

    Args:
        positive: shares of the front, side and back embedding in the embedding of the prompt; in [0, 1], sum 1.
        negative: strengths w >= 0 of the front and of the side view as negative prompts, always in this order; ready
            for ``PerpNeg(scale, weights=...)``. They act inside the guidance scale: the effective strength is scale·w.
        overhead: the camera looks from so high above that the view is an overhead view: the strengths are 0, and
            a prompt "…, overhead view" should take the place of the blend (`positive` is that of the azimuth still).
    """

    positive: tuple[float, float, float]
    negative: tuple[float, float]
    overhead: bool = False


@dataclass(frozen=True)
class CutoffDecay:
    r"""Exponential strengths that are cut to 0 near the view itself, after the authors' code for 3D.

    With the angle from the front :math:`\alpha = |\text{azimuth}|` and :math:`t = \alpha / 90`:

    .. math::
        w_{front} = \begin{cases} W e^{-k_f (1 - t)} & t < 1 \\ W & t \ge 1 \end{cases} \qquad
        w_{side} = \begin{cases} W e^{-k_s t} & t < 1 \\ \tfrac12 W e^{-k_s (2 - t)} & t \ge 1 \end{cases}

    but :math:`w_{front} = 0` where :math:`\alpha < m`, and :math:`w_{side} = 0` where :math:`|\alpha - 90| < m`: no
    view is pushed away from itself. The strengths jump there: by 0.404 for the front view at 18 degrees, and by less
    than 0.001 for the side view. The elevation has no influence.

    Args:
        strength: W, at least 0. Published default 2 (the option ``negative_w = -2``), useful up to 4: more suppresses
            the Janus problem better and may flatten faces.
        front_decay: :math:`k_f`, at least 0. Published default 2 (``front_decay_factor``).
        side_decay: :math:`k_s`, at least 0. Published default 10 (``side_decay_factor``).
        margin: m in degrees, between 0 and 90. 18 is the cut-off at 0.8 and 0.2 of a quarter turn in the code.

    Raises:
        RuleError: a parameter is not a finite number in its range.

    References:
        Armandpour et al., "Re-imagine the Negative Prompt Algorithm", arXiv:2304.04968. The form with its defaults is
        that of the authors' code and of stable-dreamfusion. It also leaves out weights below 1e-4, which the defaults
        never reach without being 0; here they are kept.

    >>> CutoffDecay(strength=3).strength
    3.0
    """

    strength: float = 2.0
    front_decay: float = 2.0
    side_decay: float = 10.0
    margin: float = 18.0

    def __post_init__(self) -> None:
        for name in ("strength", "front_decay", "side_decay"):
            number(self, name, 0.0)
        number(self, "margin", 0.0, QUARTER)

    def is_overhead(self, elevation: float) -> bool:
        """Whether the camera counts as overhead: never, as this variant has no rule for such views."""
        return False

    def negative(self, angle: float) -> tuple[float, float]:
        """Strengths of the front and the side view, `angle` in [0, 180] degrees from the front; the equation above."""
        t = angle / QUARTER
        if angle < QUARTER:
            front = self.strength * math.exp(-self.front_decay * (1 - t))
            side = self.strength * math.exp(-self.side_decay * t)
        else:
            front = self.strength
            side = self.strength / 2 * math.exp(-self.side_decay * (2 - t))
        # The angles are compared, not the fractions: 18 and 72 degrees are then on the border to the last bit.
        return 0.0 if angle < self.margin else front, 0.0 if abs(angle - QUARTER) < self.margin else side


@dataclass(frozen=True)
class ShiftedDecay:
    r"""Shifted exponential strengths that end at 0 by themselves, after threestudio.

    With the angle from the front :math:`\alpha = |\text{azimuth}|`, :math:`t = \alpha / 90` and
    :math:`f(r) = a\,e^{-b r} + c`:

    .. math::
        w_{front} = \begin{cases} f_1(1 - t) & t < 1 \\ f_3(2 - t) & t \ge 1 \end{cases} \qquad
        w_{side} = \begin{cases} f_2(t) & t < 1 \\ f_4(2 - t) & t \ge 1 \end{cases}

    and both 0 above the elevation `overhead`. With the defaults the front view goes from 0 at the front by 1.574 at
    the side to 1.967 at the back, the side view from 1.574 at the front by 0 at the side to 0.394 at the back, with
    no jump above 0.0005.

    Args:
        front_to_side: (a, b, c) of :math:`f_1`, the front view seen from the front half (threestudio's ``f_fs``).
        side_to_front: of :math:`f_2`, the side view seen from the front half (``f_sf``).
        front_to_back: of :math:`f_3`, the front view seen from the back half (``f_fsb``).
        side_to_back: of :math:`f_4`, the side view seen from the back half (``f_sb``).
        overhead: elevation in degrees, between -90 and 90, above which a view is an overhead view. 90: none is.

    All defaults are threestudio's. Its c make f(1) = 0, rounded to three digits, but for ``front_to_back``, whose c
    joins it to ``front_to_side`` at the side. Each b must be at least 0, and f(0) and f(1) too, so that no strength
    is negative.

    Raises:
        RuleError: a parameter is of another kind or out of its range, or makes a strength negative.

    References:
        Armandpour et al., "Re-imagine the Negative Prompt Algorithm", arXiv:2304.04968; defaults and the rule for
        overhead views from threestudio's prompt processors.

    >>> ShiftedDecay(overhead=45).side_to_back
    (1.0, 0.5, -0.606)
    """

    front_to_side: tuple[float, float, float] = (4.0, 0.5, -2.426)
    side_to_front: tuple[float, float, float] = (4.0, 0.5, -2.426)
    front_to_back: tuple[float, float, float] = (1.0, 0.5, 0.967)
    side_to_back: tuple[float, float, float] = (1.0, 0.5, -0.606)
    overhead: float = 60.0

    def __post_init__(self) -> None:
        for name in ("front_to_side", "side_to_front", "front_to_back", "side_to_back"):
            self._decay(name)
        number(self, "overhead", -90.0, 90.0)

    def _decay(self, name: str) -> None:
        """Make parameter `name` three floats that give no negative strength; f is monotone, so its ends decide."""
        value = plain(getattr(self, name))
        numbers = [plain(one) for one in value] if isinstance(value, tuple | list) else []
        if len(numbers) != 3 or not all(map(is_number, numbers)) or numbers[1] < 0:
            raise RuleError(f"ShiftedDecay: {name} must be three finite numbers (a, b >= 0, c), got {shown(value)}")
        a, b, c = map(float, numbers)
        least = min(_shifted((a, b, c), 0.0), _shifted((a, b, c), 1.0))
        if least < 0:
            raise RuleError(
                f"ShiftedDecay: {name} {(a, b, c)} gives the strength {least:.3g}; raise c until "
                "a·exp(-b·r) + c >= 0 at r = 0 and 1"
            )
        set_field(self, name, (a, b, c))

    def is_overhead(self, elevation: float) -> bool:
        """Whether the camera is above `overhead`."""
        return elevation > self.overhead

    def negative(self, angle: float) -> tuple[float, float]:
        """Strengths of the front and the side view, `angle` in [0, 180] degrees from the front; the equation above."""
        t = angle / QUARTER
        if angle < QUARTER:
            return _shifted(self.front_to_side, 1 - t), _shifted(self.side_to_front, t)
        return _shifted(self.front_to_back, 2 - t), _shifted(self.side_to_back, 2 - t)


def _shifted(decay: tuple[float, float, float], r: float) -> float:
    """``a·exp(-b·r) + c``, r in [0, 1]."""
    a, b, c = decay
    return a * math.exp(-b * r) + c


VARIANTS: Mapping[str, CutoffDecay | ShiftedDecay] = MappingProxyType(
    {"cutoff": CutoffDecay(), "shifted": ShiftedDecay()}
)
"""The published sets of strengths by name."""


def _degrees(name: str, value: float, bound: float = math.inf) -> float:
    """Check an angle given to a function here.

    Raises:
        RuleError: it is not a finite number in [-bound, bound].
    """
    value = plain(value)
    if not is_number(value):
        raise RuleError(f"views: {name} must be a finite number of degrees, got {shown(value)}")
    if abs(value) > bound:
        raise RuleError(f"views: {name} must be between {-bound:g} and {bound:g} degrees, got {shown(value)}")
    return float(value)


def wrap_azimuth(azimuth: float) -> float:
    """The same direction in [-180, 180) degrees, without rounding.

    Raises:
        RuleError: `azimuth` is not a finite number.

    >>> wrap_azimuth(350), wrap_azimuth(180), wrap_azimuth(-540.0)
    (-10.0, -180.0, -180.0)
    """
    wrapped = math.remainder(_degrees("azimuth", azimuth), 360.0)
    return -180.0 if wrapped == 180.0 else wrapped


def views(azimuth: float, elevation: float = 0.0, *, variant: str | CutoffDecay | ShiftedDecay) -> ViewWeights:
    r"""Weights of the view prompts for one camera.

    The prompt's embedding is interpolated between the two nearest views; with
    :math:`t = |\text{azimuth}| / 90`:

    .. math::
        z = \begin{cases} (1 - t)\, z_{front} + t\, z_{side} & t < 1 \\
                          (2 - t)\, z_{side} + (t - 1)\, z_{back} & t \ge 1 \end{cases}

    The strengths of the negatives are those of `CutoffDecay` or `ShiftedDecay`. Left and right are alike.

    Args:
        azimuth: degrees around the object, 0 at its front, 90 and -90 at its sides; any finite number, see
            `wrap_azimuth`.
        elevation: degrees above the horizon, between -90 and 90. Only ``"shifted"`` looks at it.
        variant: ``"cutoff"`` or ``"shifted"`` with the published defaults, or a `CutoffDecay` or `ShiftedDecay` with
            others.

    Raises:
        RuleError: an angle is not a finite number in its range, or the variant is unknown.

    Cost: none here. In `PerpNeg` each negative of a strength above 0 is one more evaluation a step: 4 in all at
    most.

    References:
        Armandpour et al., "Re-imagine the Negative Prompt Algorithm", arXiv:2304.04968.

    >>> views(-90, variant="cutoff")
    ViewWeights(positive=(0.0, 1.0, 0.0), negative=(2.0, 0.0), overhead=False)
    >>> [round(strength, 3) for strength in views(180, variant="shifted").negative]
    [1.967, 0.394]
    >>> views(30, 75, variant="shifted").negative
    (0.0, 0.0)
    """
    angle = abs(wrap_azimuth(azimuth))
    height = _degrees("elevation", elevation, QUARTER)
    if isinstance(variant, str) and variant in VARIANTS:
        variant = VARIANTS[variant]
    if not isinstance(variant, CutoffDecay | ShiftedDecay):
        raise RuleError(f"views: unknown variant {variant!r}{nearest(str(variant), VARIANTS)}")
    t = angle / QUARTER
    positive = (1 - t, t, 0.0) if angle < QUARTER else (0.0, 2 - t, t - 1)
    if variant.is_overhead(height):
        return ViewWeights(positive, (0.0, 0.0), overhead=True)
    return ViewWeights(positive, variant.negative(angle))
