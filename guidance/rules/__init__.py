"""The rules, one method a file; importing this package registers them."""

from .adaptive import AdaptiveGuidance, Prefix
from .apg import APG
from .cfg import CFG
from .cfg_pp import CFGPlusPlus, Renoise
from .cfg_zero import CFGZero
from .during import During
from .icg import ICG
from .linear_ag.rule import LinearAG
from .perp_neg import PerpNeg
from .renorm import Renorm
from .rescale import Rescale
from .schedule import Schedule
from .tsg import TSG

__all__ = [
    "APG",
    "CFG",
    "ICG",
    "TSG",
    "AdaptiveGuidance",
    "CFGPlusPlus",
    "CFGZero",
    "During",
    "LinearAG",
    "PerpNeg",
    "Prefix",
    "Renoise",
    "Renorm",
    "Rescale",
    "Schedule",
]
