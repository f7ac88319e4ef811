"""guide(), the records of the pipeline families, and the bundled model. Imports diffusers only when one is loaded."""

from .bundled import load_emoji
from .doctor import Diagnosis, doctor
from .family import Family, register_family
from .guide import GuidedPipeline, guide
from .inversion import edit, invert

__all__ = [
    "Diagnosis",
    "Family",
    "GuidedPipeline",
    "doctor",
    "edit",
    "guide",
    "invert",
    "load_emoji",
    "register_family",
]
