"""The look of all plots of the project, and plots as files: PNG, or SVG that is readable in light and in dark.

A plot is drawn with the colours of `LIGHT` and `INK`. In its SVG each of them is a CSS variable (``var(--s0)``,
``var(--ink)``), which the page around it sets, or for a file of its own the style in it.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, made dark enough for text on white, and light enough for text on black.
LIGHT = ("#0072b2", "#c24e00", "#00795a", "#a0457f", "#8f6100", "#2a76a9", "#5b5b5b", "#7a3b12")
DARK = ("#56b4e9", "#f08a4b", "#2cc295", "#e39cc6", "#e8b339", "#8fcbf0", "#b8b8b8", "#ffb58a")
INK = {"ink": "#1c1c1a", "soft": "#62625c", "line": "#e6e5df", "paper": "#fffffe"}
DARK_INK = {"ink": "#e8e6e1", "soft": "#a09d95", "line": "#34332f", "paper": "#181816"}
MARKERS = "os^DvP*X"

SIZE = 11  # of letters, in pixels of an SVG
MEASURED = "DejaVu Sans"  # comes with matplotlib and is wide: what has room in it has room in a reader's own font
FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
SETTINGS: Mapping[str, Any] = {
    "font.family": [MEASURED],
    "font.size": SIZE,
    "text.color": INK["ink"],
    "axes.labelcolor": INK["ink"],
    "axes.labelsize": SIZE,
    "axes.titlesize": SIZE,
    "axes.edgecolor": INK["soft"],
    "axes.linewidth": 1,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.formatter.useoffset": False,
    "axes.xmargin": 0.04,
    "axes.ymargin": 0.08,
    "grid.color": INK["line"],
    "grid.linewidth": 1,
    "xtick.color": INK["soft"],
    "ytick.color": INK["soft"],
    "ytick.left": False,
    "ytick.minor.left": False,
    "legend.frameon": False,
    "legend.fontsize": SIZE,
    "lines.linewidth": 1.8,
    "lines.markersize": 7,
    "svg.fonttype": "none",
    "text.parse_math": False,
}


def look(salt: str = "guidestack") -> AbstractContextManager[None]:
    """The settings in which plots are made and written.

    Args:
        salt: what makes the names inside an SVG its own among others on one page.
    """
    settings: Any = {**SETTINGS, "svg.hashsalt": salt}
    return matplotlib.rc_context(settings)


def figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Return an empty figure of `width` x `height` pixels, whose parts make room for one another by default."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)


def to_png(made: Figure, dpi: float = 144) -> bytes:
    """The figure as PNG, on white."""
    sink = io.BytesIO()
    made.savefig(sink, format="png", dpi=dpi, facecolor="white")
    return sink.getvalue()


def to_svg(made: Figure, title: str, described: str = "", said: Sequence[str] = (), kind: str = "plot") -> str:
    """The figure as the text of an SVG element, the same at every call.

    A part with the gid ``"@CLASSES"`` has these classes, one with ``"@CLASSES|N"`` the tooltip ``said[N]`` as well.

    Args:
        made: the figure.
        title: of the plot.
        described: what there is to see, in words.
        said: tooltips.
        kind: classes of the element.
    """
    sink = io.StringIO()
    made.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    text = sink.getvalue().partition("<svg")[2]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<g id="@([^"|]*)(?:\|(\d+))?">', lambda found: _marked(found, said), text)
    text = re.sub(r' id="(\w+)"', lambda found: found[0] if f"#{found[1]}" in text else "", text)
    text = re.sub(r">\s+<", "><", text).replace(f"'{MEASURED}'", FONT)
    for names, colours in ((_series(LIGHT), LIGHT), (INK, INK.values())):
        for name, colour in zip(names, colours, strict=True):
            text = text.replace(colour, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg class="{kind}" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img"'
    told = html.escape(f"{title}. {described}" if described else title)
    return f'{head} aria-label="{told}"><title>{html.escape(title)}</title>{text.partition(">")[2].strip()}'


def _marked(found: re.Match[str], said: Sequence[str]) -> str:
    title = f"<title>{html.escape(said[int(found[2])])}</title>" if found[2] else ""
    return f'<g class="{found[1]}">{title}'


def _series(colours: Sequence[str]) -> dict[str, str]:
    return {f"s{place}": colour for place, colour in enumerate(colours)}


def variables(colours: Sequence[str], inks: Mapping[str, str] | None = None) -> str:
    """The declarations of CSS that give the variables of an SVG their colours."""
    return " ".join(f"--{name}: {colour};" for name, colour in {**_series(colours), **(inks or {})}.items())


def alone(svg: str) -> str:
    """An SVG element as a file of its own, with its colours for light and for dark in it."""
    style = (
        f"svg {{ {variables(LIGHT, INK)} background: var(--paper); }} @media (prefers-color-scheme: dark) "
        f"{{ svg {{ {variables(DARK, DARK_INK)} }} }}"
    )
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1).replace(
        "<title>", f"<style>{style}</style><title>", 1
    )


def figure_bytes(made: Figure, title: str, kind: str) -> bytes:
    """The figure as a file: ``"svg"`` or ``"png"``."""
    writers: dict[str, Callable[[], bytes]] = {
        "svg": lambda: alone(to_svg(made, title)).encode(),
        "png": lambda: to_png(made),
    }
    return writers[kind]()
