"""guide(), the records of the pipeline families, and the bundled model. Imports diffusers only when one is loaded."""

from .doctor import Diagnosis, doctor
from .families.record import Family, register_family
from .guide import GuidedPipeline, guide
from .inversion import edit, invert
from .likelihood import likelihood
from .models import networks as networks  # its import lets guide() load networks by name
from .models.bundled import load_emoji
from .second import Adapters

__all__ = [
    "Adapters",
    "Diagnosis",
    "Family",
    "GuidedPipeline",
    "doctor",
    "edit",
    "guide",
    "invert",
    "likelihood",
    "load_emoji",
    "register_family",
]
