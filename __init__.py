"""guidestack: guided sampling for diffusion models.

The public names, nothing else. Pipelines, diffusers and transformers are imported when they are first used.
"""

from .guidance.config import from_config, to_config
from .guidance.errors import GuidestackError, GuidestackWarning
from .guidance.query import Query
from .guidance.registry import citation, register
from .guidance.rule import Rule
from .guidance.rules import CFG, During, Rescale
from .guidance.stack import Stack
from .guidance.text import parse
from .pipelines import guide, load_emoji
from .samplers import sample

__version__ = "0.1.0.dev0"

__all__ = [
    "CFG",
    "During",
    "GuidestackError",
    "GuidestackWarning",
    "Query",
    "Rescale",
    "Rule",
    "Stack",
    "citation",
    "from_config",
    "guide",
    "load_emoji",
    "parse",
    "register",
    "sample",
    "to_config",
]
