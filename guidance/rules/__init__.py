"""The rules, one method a file; importing this package registers them."""

from .cfg import CFG
from .during import During
from .rescale import Rescale

__all__ = ["CFG", "During", "Rescale"]
