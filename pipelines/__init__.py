"""guide(), the records of the pipeline families, and the bundled model. Imports diffusers only when one is loaded."""

from .bundled import load_emoji
from .guide import GuidedPipeline, guide

__all__ = ["GuidedPipeline", "guide", "load_emoji"]
