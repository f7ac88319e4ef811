"""Run the notebooks of the documentation and keep what they show: ``python -m guidestack.scripts.dev.notebooks``.

The cells run in this process, one after the other; no Jupyter is needed. What a cell shows is what it prints, and the
value of its last line: its table for notebooks, a picture, or its text. The working directory is a new folder, so that
no notebook goes on with what an earlier run, of other weights perhaps, left in ``out/``.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ...guidance.files import write_whole

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
PARAMETERS = "parameters"
"""The tag of the cell with the numbers that decide how long a notebook takes."""


def execute(notebook: Mapping[str, Any], **parameters: Any) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Run the cells of a notebook.

    Args:
        notebook: as its file has it.
        parameters: values to go on with after the cell of `PARAMETERS`.

    Returns:
        Each cell of code with its outputs.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield cell, _outputs("".join(cell["source"]), names)
            if PARAMETERS in cell["metadata"].get("tags", ()):
                names |= parameters


def _outputs(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    said = io.StringIO()
    value = None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(tree, "notebook", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)  # type: ignore[attr-defined]
    outputs: list[dict[str, Any]] = []
    if text := said.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        outputs.append({"output_type": "display_data", "metadata": {}, "data": _shown(value)})
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    """A value as a notebook shows it."""
    if isinstance(value, Image.Image):
        sink = io.BytesIO()
        value.save(sink, format="PNG", optimize=True)
        return {"image/png": base64.b64encode(sink.getvalue()).decode()}
    text = {"text/plain": repr(value).splitlines(keepends=True)}
    table = getattr(value, "_repr_html_", None)
    return {"text/html": [table()], **text} if table else text


def main() -> None:
    """Write the outputs of all notebooks into their files."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for number, (cell, outputs) in enumerate(execute(notebook), 1):
                cell["outputs"], cell["execution_count"] = outputs, number
        write_whole(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        print(path)


if __name__ == "__main__":
    main()
