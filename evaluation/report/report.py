"""The report of a run as a function of Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .. import plots
from ..csvs import written_csv
from ..store.folder import RunFolder
from .gather import gather
from .page import BUDGET, page

REPORT, PLOTS = "report.html", "plots"


def report(
    run: RunFolder | str | Path,
    metrics: Sequence[str] = (),
    *,
    embed: float = BUDGET,
    progress: Callable[[str], None] = lambda what: None,
) -> str:
    """Write the page of a run, ``RUN/report.html``, and its plots into ``RUN/plots``. No network is evaluated.

    Args:
        run: a run folder, or its path or fsspec address.
        metrics: metrics beside those that the sweep names, such as ``"contrast"``.
        embed: megabytes of images in the page itself, at most. Where that is not enough for all, they are made smaller,
            and those beyond it are links to the images of the folder.
        progress: called with a line that says what is done now.

    Returns:
        The path or address of the page.

    Raises:
        InputError: there is no run, a metric cannot be computed, or the page cannot be written.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    found = gather(folder, metrics, progress)
    for plot in [*found.plots, *found.differences.values()]:
        folder.write_bytes(f"{PLOTS}/{plot.name}.svg", plots.alone(plot.svg).encode())
        folder.write_bytes(f"{PLOTS}/{plot.name}.csv", written_csv(plot.rows))
    progress("the page")
    folder.write_bytes(REPORT, page(found, embed).encode())
    return f"{folder}/{REPORT}"
