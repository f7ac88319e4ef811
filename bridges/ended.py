"""The message for the user at the end of a run whose samples another program's loop returns."""

from __future__ import annotations

from ..guidance.errors import NonFiniteError
from ..guidance.run import GuidedRun
from ..pipelines.session import nothing_guided


def remark(run: GuidedRun) -> str:
    """Return what a user should know of a run that has ended, such as which samples are NaN; "" if nothing.

    Raises:
        NonFiniteError: no sample is finite. If some are, the message names the others, since the loop returns all.
    """
    try:
        return nothing_guided(run.finish())
    except NonFiniteError as error:
        if len(error.samples) == run.run.batch:
            raise
        return str(error)
