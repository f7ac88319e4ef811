"""The rules, one method a file; importing this package registers them."""

from .adaptive import AdaptiveGuidance, Prefix
from .adg import ADG
from .apg import APG
from .autoguidance import Autoguidance
from .cfg import CFG
from .cfg_mp import CFGMP
from .cfg_pp import CFGPlusPlus, Renoise
from .cfg_zero import CFGZero
from .classifier import ClassifierGuidance
from .classifier_reference import ClassifierReference
from .during import During
from .elucd import EluCD
from .epsilon_scaling import EpsilonScaling
from .fbg import FBG
from .fdg import FDG
from .fresca import FreSca
from .fsg import FSG
from .icg import ICG
from .langevin import Langevin
from .linear_ag.rule import LinearAG
from .mambo_g import MamboG
from .momentum import Momentum
from .nag import NAG
from .nasa import NASA
from .pag import PAG
from .perp_neg import PerpNeg
from .pladis import PLADIS
from .ppgn import PPGN
from .ramp import Ramp
from .rectified_cfg import RectifiedCFG
from .recur import Recur
from .red_diff import REDDiff
from .renorm import Renorm
from .replace import Replace
from .resample import Resample
from .rescale import Rescale
from .s2 import S2
from .schedule import Schedule
from .seg import SEG
from .self_guidance import SelfGuidance
from .skimmed import Skimmed
from .slg import SLG
from .smc_cfg import SMCCFG
from .tcfg import TCFG
from .tfg import TFG
from .threshold import Threshold
from .tome import TokenMerge
from .tpg import TPG
from .tsg import TSG
from .z_sampling import ZSampling

__all__ = [
    "ADG",
    "APG",
    "CFG",
    "CFGMP",
    "FBG",
    "FDG",
    "FSG",
    "ICG",
    "NAG",
    "NASA",
    "PAG",
    "PLADIS",
    "PPGN",
    "S2",
    "SEG",
    "SLG",
    "SMCCFG",
    "TCFG",
    "TFG",
    "TPG",
    "TSG",
    "AdaptiveGuidance",
    "Autoguidance",
    "CFGPlusPlus",
    "CFGZero",
    "ClassifierGuidance",
    "ClassifierReference",
    "During",
    "EluCD",
    "EpsilonScaling",
    "FreSca",
    "Langevin",
    "LinearAG",
    "MamboG",
    "Momentum",
    "PerpNeg",
    "Prefix",
    "REDDiff",
    "Ramp",
    "RectifiedCFG",
    "Recur",
    "Renoise",
    "Renorm",
    "Replace",
    "Resample",
    "Rescale",
    "Schedule",
    "SelfGuidance",
    "Skimmed",
    "Threshold",
    "TokenMerge",
    "ZSampling",
]
