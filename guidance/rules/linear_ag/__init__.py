"""LinearAG: the rule, and the fit of its coefficients."""

from .rule import LinearAG

__all__ = ["LinearAG"]
