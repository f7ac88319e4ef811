"""Peak memory of a run in tensors that it allocates, the weights left out: stricter than what a process holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that were allocated at once while `run` ran, beyond what was there before.

    What the C library holds back or rounds up does not count, so that the figure is the same every time.
    """
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None  # made by the context
    events: Any = profiler.profiler.kineto_results.events()
    live = most = 0
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the profiler's own log off the terminal: it writes past Python, to where standard error leads."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
