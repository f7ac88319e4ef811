r"""View-dependent weights of Perp-Neg for text-to-3D: which views a camera asks for, and which it must avoid.

Rendered from all sides, an object made by a text-to-image model tends to get a face on every side (the Janus problem).
Against it the prompt follows the camera: its embedding is blended from those of "…, front view", "…, side view" and
"…, back view", while the front and the side view are negative prompts of a strength that depends on the camera too
(Armandpour et al., "Re-imagine the Negative Prompt Algorithm", arXiv:2304.04968). Two sets of strengths are in use.
Below, :math:`\alpha` is the angle from the front in [0, 180] degrees and :math:`t = \alpha / 90`.

Plain numbers, no tensors: a call takes a few microseconds and evaluates no network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

POSITIVE_VIEWS = ("front", "side", "back")
"""The views whose embeddings are blended, in the order of `ViewWeights.positive`."""
NEGATIVE_VIEWS = ("front", "side")
"""The views that are negative prompts, in the order of `ViewWeights.negative`. The back view never is one."""
QUARTER = 90.0  # degrees from the front to the side, and from the side to the back
MARGIN = 18.0  # degrees around a view within which `cutoff` does not push away from it
OVERHEAD = 60.0  # degrees of elevation above which `shifted` takes a view for an overhead view


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


def cutoff(angle: float) -> tuple[float, float]:
    r"""Strengths of the front and the side view after the authors' code for 3D and stable-dreamfusion, at its defaults.

    .. math::
        w_{front} = \begin{cases} 2 e^{-2 (1 - t)} & t < 1 \\ 2 & t \ge 1 \end{cases} \qquad
        w_{side} = \begin{cases} 2 e^{-10 t} & t < 1 \\ e^{-10 (2 - t)} & t \ge 1 \end{cases}

    but :math:`w_{front} = 0` where :math:`\alpha < 18`, and :math:`w_{side} = 0` where :math:`|\alpha - 90| < 18`: no
    view is pushed away from itself. The strengths jump there: by 0.404 for the front view, and by less than 0.001 for
    the side view. The elevation has no influence.
    """
    t = angle / QUARTER
    front = 2 * math.exp(-2 * (1 - t)) if angle < QUARTER else 2.0
    side = 2 * math.exp(-10 * t) if angle < QUARTER else math.exp(-10 * (2 - t))
    # The angles are compared, not the fractions: 18 and 72 degrees are then on the border to the last bit.
    return 0.0 if angle < MARGIN else front, 0.0 if abs(angle - QUARTER) < MARGIN else side


def shifted(angle: float) -> tuple[float, float]:
    r"""Strengths of the front and the side view after threestudio's prompt processors, at its defaults.

    .. math::
        w_{front} = \begin{cases} f(1 - t) & t < 1 \\ g(2 - t) + 0.967 & t \ge 1 \end{cases} \qquad
        w_{side} = \begin{cases} f(t) & t < 1 \\ g(2 - t) - 0.606 & t \ge 1 \end{cases}

    with :math:`f(r) = 4 e^{-r/2} - 2.426` and :math:`g(r) = e^{-r/2}`. The front view goes from 0 at the front by 1.574
    at the side to 1.967 at the back, the side view from 1.574 at the front by 0 at the side to 0.394 at the back, with
    no jump above 0.0005.
    """
    t = angle / QUARTER
    if angle < QUARTER:
        return 4 * math.exp(-0.5 * (1 - t)) - 2.426, 4 * math.exp(-0.5 * t) - 2.426
    return math.exp(-0.5 * (2 - t)) + 0.967, math.exp(-0.5 * (2 - t)) - 0.606


VARIANTS = {"cutoff": cutoff, "shifted": shifted}
"""The published sets of strengths by name."""


def views(azimuth: float, elevation: float = 0.0, *, variant: str) -> ViewWeights:
    r"""Weights of the view prompts for one camera. Left and right are alike.

    The prompt's embedding is interpolated between the two nearest views:

    .. math::
        z = \begin{cases} (1 - t)\, z_{front} + t\, z_{side} & t < 1 \\
                          (2 - t)\, z_{side} + (t - 1)\, z_{back} & t \ge 1 \end{cases}

    Args:
        azimuth: degrees around the object, 0 at its front, 90 and -90 at its sides; any finite number.
        elevation: degrees above the horizon, between -90 and 90. Only ``"shifted"`` looks at it.
        variant: one of `VARIANTS`.

    Cost: none here. In `PerpNeg` each negative of a strength above 0 is one more evaluation a step: 4 in all at most.

    >>> views(-90, variant="cutoff")
    ViewWeights(positive=(0.0, 1.0, 0.0), negative=(2.0, 0.0), overhead=False)
    >>> [round(strength, 3) for strength in views(180, variant="shifted").negative]
    [1.967, 0.394]
    >>> views(30, 75, variant="shifted").negative
    (0.0, 0.0)
    """
    angle = abs(math.remainder(azimuth, 360.0))
    t = angle / QUARTER
    positive = (1 - t, t, 0.0) if angle < QUARTER else (0.0, 2 - t, t - 1)
    if variant == "shifted" and elevation > OVERHEAD:
        return ViewWeights(positive, (0.0, 0.0), overhead=True)
    return ViewWeights(positive, VARIANTS[variant](angle))
