"""The grid of the page: one stack over the values of one parameter, or of two."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Protocol

from nicegui import ui
from PIL import Image

from ...guidance.errors import GuidestackError, InputError
from ...pipelines.models import files
from .axes import MOST, Varied, axes_of, chosen
from .making import Cell, Job, Maker, read, recipe_of

PIXELATED = 128  # pixels: narrower pictures are enlarged as they are


class Around(Protocol):
    """The functions of the page that its grid needs."""

    columns: list[Any]
    maker: Maker
    model: Any
    files: Any

    def settings(self) -> dict[str, Any] | None:
        """What the settings say; None where one is wrong."""

    def typed(self) -> dict[str, str]:
        """What stands in the settings."""

    def stop(self) -> None:
        """Stop what is being made."""


@dataclass(eq=False)
class Square:
    """A place of the grid: the cell, where it is shown, and what is shown of it."""

    cell: Cell
    area: Any
    seen: tuple[str, int] | None = None


class Sheet:
    """The form of a grid, and the grid.

    Args:
        page: that it is on.
    """

    def __init__(self, page: Around) -> None:
        self.page = page
        self.squares: list[Square] = []
        self.job: Job | None = None
        self.heads: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        with ui.element("section").classes("stack") as area:
            area.props["aria-label"] = "Grid"
            with ui.element("h2"):
                ui.label("Grid")
            with ui.element("div").classes("axes"):
                self.letter = ui.select(["A"], value="A", label="stack", on_change=lambda _: self.offer())
                self.names, self.values = [], []
                for which in ("across", "down"):
                    name = ui.select([], label=which, clearable=which == "down")
                    values = ui.input("values", placeholder='2, 4, 8 or 2:8:4 or "a, b", "c, d"')
                    values.without_auto_validation().props("debounce=200 autocomplete=off spellcheck=false")
                    for what, field in {which: name, f"{which}/values": values}.items():
                        field.props["data-control"] = f"grid/{what}"
                    self.names.append(name)
                    self.values.append(values)
                for field in (self.letter, *self.names, *self.values):
                    field.props("outlined dense options-dense")
            with ui.element("div").classes("bar"):
                button = ui.button("Make the grid", icon="grid_on", on_click=self.make).props("unelevated no-caps")
                button.props["data-control"] = "grid/make"
                self.saving = ui.button("Save as one picture", icon="download", on_click=self.save)
                self.saving.props("flat no-caps").props["data-control"] = "grid/save"
                self.saving.set_visibility(False)
            self.said = ui.label().classes("said")
            self.said.props["data-said"] = "grid"
            self.area = ui.element("div").classes("sheet")

    def offer(self) -> None:
        """Offer the parameters of the stacks as they are now."""
        letters = [column.letter for column in self.page.columns]
        if self.letter.options != letters:
            self.letter.set_options(letters, value=self.letter.value if self.letter.value in letters else letters[0])
        stack = self._column().stack
        if stack is None:
            return
        names = list(axes_of(stack))
        for number, select in enumerate(self.names):
            if select.options != names:
                value = select.value if select.value in names else (names[0] if number == 0 else None)
                select.set_options(names, value=value)

    def _column(self) -> Any:
        return next((one for one in self.page.columns if one.letter == self.letter.value), self.page.columns[0])

    def make(self) -> None:
        """Make the images, or say beside what is wrong why not."""
        column = self._column()
        self.said.text = ""
        for values in self.values:
            values.error = None
        if column.plan is None or column.stack is None or self.page.settings() is None:
            self.said.text = "mend what is marked first"
            return
        axes: list[Varied] = []
        for name, values in zip(self.names, self.values, strict=True):
            if name.value:
                try:
                    axes.append(chosen(column.stack, name.value, values.value or ""))
                except GuidestackError as error:
                    values.error = str(error)
                    return
        across, down = axes[0], axes[1] if len(axes) > 1 else None
        if down is not None and across.name == down.name:
            self.said.text = f"across and down are both {across.name}; choose another one"
            return
        if len(across.values) * len(down.values if down else ("",)) > MOST:
            self.said.text = f"a grid has {MOST} images at most; guidestack evaluate makes more"
            return
        cells = []
        for y in down.values if down else ("",):
            for x in across.values:
                try:
                    cells.append(self._cell(column.stack, [(across, x), *([(down, y)] if down else [])]))
                except GuidestackError as error:
                    self.said.text = f"{x}{f', {y}' if y else ''}: {error}"
                    return
        self._begin(across, down, cells)

    def _cell(self, stack: Any, put: list[tuple[Varied, str]]) -> Cell:
        """The cell with these values.

        Raises:
            GuidestackError: a rule or a setting refuses one.
        """
        typed = self.page.typed()
        for axis, value in put:
            stack, typed = axis.put(value, stack, typed)
        settings, wrong = read(typed, self.page.model.name)
        if wrong:
            raise InputError(next(iter(wrong.values())))
        return Cell(recipe_of(stack, settings, self.page.model.dtype)[0], self.page.files.given)

    def _begin(self, across: Varied, down: Varied | None, cells: list[Cell]) -> None:
        self.page.stop()
        rows = [f"{down.name} = {value}" for value in down.values] if down else [""]
        columns = [f"{across.name} = {value}" for value in across.values]
        self.heads = tuple(rows), tuple(columns)
        self.squares = []
        self.area.clear()
        left = iter(cells)
        with self.area, ui.element("table"):
            with ui.element("tr"):
                for head in ([""] if down else []) + columns:
                    with ui.element("th"):
                        ui.label(head)
            for row in rows:
                with ui.element("tr"):
                    if down:
                        with ui.element("th"):
                            ui.label(row)
                    for _ in columns:
                        with ui.element("td") as place:
                            self.squares.append(Square(next(left), place))
        self.job = Job(cells)
        self.page.maker.start(self.job)

    def refresh(self) -> None:
        """Show what was made since the last time."""
        for square in self.squares:
            cell = square.cell
            if square.seen == (cell.state, cell.step):
                continue
            square.seen = cell.state, cell.step
            square.area.clear()
            with square.area:
                if cell.state == "made":
                    picture(cell)
                else:
                    told = cell.error or (
                        f"{cell.step} of {cell.recipe.steps}" if cell.state == "making" else cell.state
                    )
                    ui.label(told).classes("hint place")
        self.saving.set_visibility(any(square.cell.state == "made" for square in self.squares))

    def save(self) -> None:
        """Hand out the grid as one labelled picture."""
        rows, columns = self.heads
        images: list[Image.Image | None] = []
        for square in self.squares:
            found = self.page.maker.picture(square.cell.picture)
            images.append(Image.open(io.BytesIO(found[1]), formats=("PNG",)) if found else None)
        table = [images[row * len(columns) : (row + 1) * len(columns)] for row in range(len(rows))]
        ui.download(files.contents(files.grid(table, rows, columns), "png"), "grid.png")


def picture(cell: Cell) -> None:
    """A finished image, which leads to the file that makes it again."""
    link = ui.link("", f"/made/{cell.picture}")
    link.props["download"] = cell.recipe.filename
    with link:
        image = ui.element("img")
        image.props["src"] = f"/made/{cell.picture}"
        image.props["alt"] = f"{cell.recipe.prompt}, {cell.recipe.guidance}, seed {cell.recipe.seed}"
        if cell.width < PIXELATED:
            image.classes("small")
