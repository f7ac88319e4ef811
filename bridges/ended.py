"""What to say of a run whose samples another loop hands on by itself."""

from __future__ import annotations

from ..guidance.errors import NonFiniteError
from ..guidance.run import GuidedRun
from ..pipelines.session import nothing_guided


def remark(run: GuidedRun) -> str:
    """What a user should know of a run that is over, or "".

    Raises:
        NonFiniteError: no sample is finite. Of some that are lost the remark tells, since the loop returns the others.
    """
    try:
        return nothing_guided(run.finish())
    except NonFiniteError as error:
        if len(error.samples) == run.run.batch:
            raise
        return str(error)
