"""guidestack: guided sampling for diffusion models.

The public names, nothing else. Each is imported when it is first used, so that `import guidestack` and the command line
start at once; torch comes with the first name, diffusers and transformers with the first pipeline.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bridges import as_denoiser as as_denoiser
    from .bridges.guider import StackGuider as StackGuider
    from .guidance.config import from_config as from_config
    from .guidance.config import to_config as to_config
    from .guidance.errors import GuidestackError as GuidestackError
    from .guidance.errors import GuidestackWarning as GuidestackWarning
    from .guidance.pretrained import from_pretrained as from_pretrained
    from .guidance.pretrained import save_pretrained as save_pretrained
    from .guidance.query import Query as Query
    from .guidance.registry import citation as citation
    from .guidance.registry import register as register
    from .guidance.rule import Rule as Rule
    from .guidance.rules import APG as APG
    from .guidance.rules import CFG as CFG
    from .guidance.rules import ICG as ICG
    from .guidance.rules import TSG as TSG
    from .guidance.rules import AdaptiveGuidance as AdaptiveGuidance
    from .guidance.rules import CFGPlusPlus as CFGPlusPlus
    from .guidance.rules import During as During
    from .guidance.rules import LinearAG as LinearAG
    from .guidance.rules import PerpNeg as PerpNeg
    from .guidance.rules import Prefix as Prefix
    from .guidance.rules import Renoise as Renoise
    from .guidance.rules import Renorm as Renorm
    from .guidance.rules import Rescale as Rescale
    from .guidance.rules import Schedule as Schedule
    from .guidance.stack import Stack as Stack
    from .guidance.text import parse as parse
    from .pipelines import Family as Family
    from .pipelines import doctor as doctor
    from .pipelines import edit as edit
    from .pipelines import guide as guide
    from .pipelines import invert as invert
    from .pipelines import load_emoji as load_emoji
    from .pipelines import register_family as register_family
    from .samplers import sample as sample

__version__ = "0.1.0.dev0"

_HOMES = {
    "APG": ".guidance.rules",
    "AdaptiveGuidance": ".guidance.rules",
    "CFG": ".guidance.rules",
    "CFGPlusPlus": ".guidance.rules",
    "ICG": ".guidance.rules",
    "LinearAG": ".guidance.rules",
    "PerpNeg": ".guidance.rules",
    "Prefix": ".guidance.rules",
    "Renoise": ".guidance.rules",
    "Renorm": ".guidance.rules",
    "TSG": ".guidance.rules",
    "During": ".guidance.rules",
    "Family": ".pipelines",
    "GuidestackError": ".guidance.errors",
    "GuidestackWarning": ".guidance.errors",
    "Query": ".guidance.query",
    "Rescale": ".guidance.rules",
    "Schedule": ".guidance.rules",
    "Rule": ".guidance.rule",
    "Stack": ".guidance.stack",
    "StackGuider": ".bridges.guider",
    "as_denoiser": ".bridges",
    "citation": ".guidance.registry",
    "doctor": ".pipelines",
    "edit": ".pipelines",
    "from_config": ".guidance.config",
    "from_pretrained": ".guidance.pretrained",
    "guide": ".pipelines",
    "invert": ".pipelines",
    "load_emoji": ".pipelines",
    "parse": ".guidance.text",
    "register": ".guidance.registry",
    "register_family": ".pipelines",
    "sample": ".samplers",
    "save_pretrained": ".guidance.pretrained",
    "to_config": ".guidance.config",
}
__all__ = [*_HOMES, "__version__"]  # the names above, once


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
