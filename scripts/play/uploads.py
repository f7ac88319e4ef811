"""The fields of the page for files: a button for each, the file's name, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nicegui import run, ui

from ...guidance.objective import OBJECTIVE
from ...guidance.rule import Stack
from ...pipelines.models.pictures import MASK
from .files import Given, misfits, needed, place_of, read

LARGEST_FILE = 2**28  # bytes of a file that is given to the page
IMAGES = ".png,.jpg,.jpeg,.webp"
LABELS = {"image": "Begin from a picture", MASK: "Paint where it is white"}
HINTS = {
    "image": "The images begin from this picture instead of from noise; strength says how far it is noised",
    MASK: "A picture of the same size: white is painted anew, black is kept",
}


def upload(accept: str, taken: Callable[[Any], Any], refused: Callable[[str], Any]) -> Any:
    """A way to give a file, without a face of its own.

    Args:
        accept: endings of the file's name.
        taken: called with the event of a file.
        refused: called with what to say of a file that is too large or has another ending.
    """
    field = ui.upload(max_file_size=LARGEST_FILE, auto_upload=True, on_upload=taken).classes("hidden")
    field.on("rejected", lambda: refused(f"a file that ends in {accept}, of 256 MB at most, can be given here"))
    field.props["accept"] = accept
    return field


class Files:
    """The files of one page.

    Args:
        folder: where they go.
        changed: called when a file or what belongs to it was changed.
    """

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        self.folder, self.changed = folder, changed
        self.paths: dict[str, Path] = {}
        self.loras: list[tuple[Path, str]] = []
        self.given = Given()
        self.unread: dict[str, str] = {}  # what is wrong with a file itself, by name
        self.blamed: dict[str, str] = {}  # what came of one when an image was made
        self.asked: dict[str, str] = {}
        self.said: dict[str, Any] = {}
        self.area = ui.element("section").classes("files")
        self.area.props["aria-label"] = "Files"
        self._draw()

    def _draw(self) -> None:
        self.area.clear()
        self.said.clear()
        with self.area:
            for name in ("image", MASK) if self.paths.keys() & {"image", MASK} else ("image",):
                self._field(name, IMAGES, LABELS[name], HINTS[name])
            for name, text in self.asked.items():
                label = f"The picture of {name.removeprefix(OBJECTIVE)}"
                self._field(name, IMAGES, label, f"What the objective {text} of a stack compares with")
            for place in range(len(self.loras)):
                self._lora(place)
            self._field("lora", ".safetensors", "Add a LoRA", "Weights that are added to the model's, at a scale")

    def _field(self, name: str, accept: str, label: str, hint: str) -> None:
        async def taken(event: Any) -> None:
            event.sender.reset()
            path = place_of(self.folder, event.file.name or "")
            await event.file.save(path)
            if name == "lora":
                self.loras.append((path, "1"))
            else:
                self.paths[name] = path
            await self._read()

        with ui.element("div").classes("file"):
            field = upload(accept, taken, lambda message: self.blame(name, message))
            field.props["data-control"] = f"file/{name}"
            button = ui.button(label, icon="attach_file", on_click=lambda: field.run_method("pickFiles"))
            button.props("flat dense no-caps size=sm").tooltip(hint)
            if name in self.paths:
                self._there(name, self.paths[name].name, lambda: self.paths.pop(name))
            self._line(name)

    def _lora(self, place: int) -> None:
        path, scale = self.loras[place]

        async def rescaled(event: Any) -> None:
            self.loras[place] = path, event.value or ""
            await self._read(draw=False)

        with ui.element("div").classes("file"):
            self._there(f"lora{place}", path.name, lambda: self.loras.pop(place))
            field = ui.input("scale", value=scale, on_change=rescaled)
            field.without_auto_validation().props("dense outlined debounce=300 autocomplete=off")
            field.props["data-control"] = f"file/lora{place}/scale"
            self._line(f"lora{place}")

    def _there(self, name: str, label: str, drop: Callable[[], Any]) -> None:
        async def dropped() -> None:
            drop()
            await self._read()

        ui.label(label).classes("hint")
        button = ui.button(icon="close", on_click=dropped).props("flat dense round size=xs")
        button.props["aria-label"] = f"Drop {label}"
        button.props["data-control"] = f"file/{name}/drop"

    def _line(self, name: str) -> None:
        self.said[name] = ui.label().classes("said")
        self.said[name].props["data-said"] = f"file/{name}"

    async def _read(self, draw: bool = True) -> None:
        """Read the files anew, away from the thread of the pages: a picture may be large."""
        found = await run.io_bound(read, dict(self.paths), list(self.loras))
        if found is None:  # the server is closing
            return
        self.given, self.unread = found
        self.blamed = {}
        with self.area:
            if draw:
                self._draw()
            self.changed()

    def blame(self, name: str, message: str) -> None:
        """Show beside a file why it was refused."""
        self.blamed[name] = message
        if name in self.said:
            self.said[name].text = message

    def settle(self, stacks: Sequence[Stack], size: tuple[int, int] | None, own: tuple[int, int] | None) -> bool:
        """Ask for the pictures that the stacks take, and show what is wrong with each file.

        Args:
            stacks: those of the page.
            size: height and width that are asked for; None for the model's own.
            own: the model's own, where they are known.

        Returns:
            Whether all files can be used.
        """
        if (asked := needed(stacks)) != self.asked:
            self.asked = asked
            self._draw()
        unfit = {**misfits(self.given, stacks, size, own), **self.unread}
        told: Mapping[str, str] = {**self.blamed, **unfit}
        for name, label in self.said.items():
            label.text = told.get(name, "")
        return not unfit.keys() & self.said.keys()
