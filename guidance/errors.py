"""Everything guidestack raises on purpose.

GuidestackError
├── RuleError                a rule was given a parameter it cannot work with
│   └── CompositionError     two rules of a stack cannot work together
├── StackSyntaxError         the text or mapping of a stack cannot be read
├── QueryError               a rule read what it had not asked for, or nobody can answer a query
├── UnsupportedError         a pipeline, scheduler or size that guidestack does not know
│   ├── UnsupportedPipelineError
│   └── UnsupportedSchedulerError
├── GuidanceNotAppliedError  a run ended in which the guidance did not happen as asked
├── NonFiniteError           NaN or Inf in a prediction or in a guided estimate
├── RuleCheckError           `check_rule` found a broken invariant
└── InputError               an argument, a file or a folder that cannot be used

Each message says what was given, what was expected and what to change. Nothing here is raised for a programming error
inside guidestack, and no user error is an `assert`. What a message quotes is cut (`shown`), and so is the message.
"""

from __future__ import annotations

import difflib
import reprlib
import sys
import warnings
from collections.abc import Iterable
from typing import Any

PACKAGE = __name__.partition(".")[0]
LONGEST = 2000  # characters of a message


def cut(text: str, longest: int = LONGEST) -> str:
    """`text` without its middle if it is longer: what was wrong stands at the start, what to change at the end."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"


class _Quoted(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, 80, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write numbers of more than some thousand digits."""
        return f"<a whole number of {x.bit_length()} bits>" if x.bit_length() > 1024 else super().repr_int(x, level)


_QUOTED = _Quoted()


def shown(value: Any) -> str:
    """`value` as it is quoted in a message: as `repr` writes it, cut to what fits, whatever its size or depth."""
    return cut(_QUOTED.repr(value), 80)


def reason(error: BaseException) -> str:
    """One line of an error of a library or the system, for the end of a message."""
    text = getattr(error, "strerror", None) or str(error)
    return cut(" ".join(str(text).split()), 300) or type(error).__name__


class GuidestackError(Exception):
    """Base class of the errors of guidestack. A message that is too long for a line or two is cut in the middle."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(cut(one) if isinstance(one, str) else one for one in arguments))


class RuleError(GuidestackError, ValueError):
    """A rule was given a parameter it cannot work with."""


class CompositionError(RuleError):
    """Two rules of a stack cannot work together; the message names both."""


class StackSyntaxError(GuidestackError, ValueError):
    """The text or the mapping of a stack cannot be read."""


class QueryError(GuidestackError, LookupError):
    """A rule read a prediction it had not asked for, or a query has no answer here."""


class UnsupportedError(GuidestackError):
    """guidestack does not know how to work with this object."""


class UnsupportedPipelineError(UnsupportedError):
    """No family record for this pipeline, or the pipeline cannot run the stack."""


class UnsupportedSchedulerError(UnsupportedError):
    """The levels of this scheduler are not known."""


class GuidanceNotAppliedError(GuidestackError, RuntimeError):
    """A run ended in which the guidance did not happen as it was asked for."""


class NonFiniteError(GuidestackError, ArithmeticError):
    """NaN or Inf in a prediction or in a guided estimate.

    Samples do not meet: those of the batch that are finite are made to the end, and the error is raised then. Where no
    sample is finite it may come at once.

    Attributes:
        samples: the samples that are lost, counted from 0.
        output: what the call would have returned, in which all but the lost samples are as they should be; None where
            the call was not made to the end. What stands in a lost sample's place means nothing: a black picture, say.

    >>> error = NonFiniteError("NaN in the second of three", samples=(1,))
    >>> error.output = ["first", None, "third"]  # as `guide` and `sample` do
    >>> [kept for place, kept in enumerate(error.output) if place not in error.samples]
    ['first', 'third']
    """

    def __init__(self, message: str, samples: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.samples = tuple(samples)
        self.output: Any = None


class RuleCheckError(GuidestackError, AssertionError):
    """`check_rule` found a broken invariant."""


class InputError(GuidestackError):
    """An argument, a file or a folder that a user gave cannot be used."""


class GuidestackWarning(UserWarning):
    """Base of the warnings guidestack gives: the run goes on, and the result may not be what was meant."""


def warn(message: str) -> None:
    """Warn at the line that calls into the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(f"{PACKAGE}."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, GuidestackWarning, stacklevel=level)


LISTED = 250
"""Characters of valid names that a message lists."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is meant: ``"; did you mean 'cfg'?"``, or list valid names, a line at most."""
    names, name = sorted(valid), name[:100]
    if close := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
        # Of several near ones the one with the same letters in another order: transposing is the commonest slip.
        swapped = [one for one in close if sorted(one) == sorted(name)]
        return f"; did you mean {(swapped or close)[0]!r}?"
    listed = ", ".join(names)
    if len(listed) > LISTED:
        listed = f"{listed[:LISTED].rpartition(', ')[0]}, ... ({len(names)} in all)"
    return f"; expected one of: {listed}" if names else "; none is expected here"
