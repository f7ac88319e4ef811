"""doctor(): does guide() work on this pipeline, checked by running it. One file a question."""

from .diagnosis import Check, Diagnosis
from .doctor import doctor, unrecorded

__all__ = ["Check", "Diagnosis", "doctor", "unrecorded"]
