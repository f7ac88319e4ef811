"""The oracle and the invariants that every rule passes; public, so that third parties can check their rules."""

from .checks import check_move, check_rule, guide_once, oracle_run
from .mixture import Gaussian1D, GaussianMixture, MixtureDenoiser, gaussian_1d

__all__ = [
    "Gaussian1D",
    "GaussianMixture",
    "MixtureDenoiser",
    "check_move",
    "check_rule",
    "gaussian_1d",
    "guide_once",
    "oracle_run",
]
