"""The page: settings, stacks side by side, and what they made."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nicegui import ui

from ...evaluation.plots import LIGHT
from ...guidance.errors import GuidestackError, InputError, UnsupportedSchedulerError, shown
from ...guidance.notation import presets
from ...guidance.rule import Stack
from ...pipelines.models.files import read_recipe
from ...pipelines.models.recipe import Recipe
from ...samplers import SAMPLERS
from ..explain import Explained
from .cards import Cards
from .copies import command_of, python_of
from .making import DEFAULTS, Cell, Job, Maker, check_files, planned, read, recipe_of
from .plot import STYLE, plot_of
from .sheet import Sheet, picture
from .uploads import Files, upload

FIRST = ("cfg(4)", "cfg(4) | rescale(0.7)", "apg(6, momentum=-0.5)")
"""The stacks of a new page, as many as are shown, and what a further one begins with."""
LETTERS = "ABC"
HINTS = {
    "prompt": "what is to be seen",
    "negative": "what is not to be seen; under perpneg several, as a | b",
    "extra": "further positive prompts under perpneg, as a | b",
    "sampler": "",
    "steps": "",
    "seed": "",
    "size": "HxW in pixels",
    "strength": "above 0, at most 1",
}
BLUE = LIGHT[0]
CSS = (Path(__file__).with_name("page.css")).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Model:
    """The options of the command that concern the model.

    Args:
        name: folder or hub id; None for the bundled model.
        dtype: type of the weights.
        networks: further networks, as they were given.
        sampler: that the page begins with.
    """

    name: str | None
    dtype: str
    networks: Mapping[str, str]
    sampler: str


def stack_of(text: str) -> Stack:
    """The stack of a text that anybody may have typed: names of presets are read, and no file that a text names.

    Raises:
        GuidestackError: it is none.
    """
    if text.strip().startswith("@") and text.strip()[1:] not in presets.names():
        raise InputError(f"no preset {shown(text.strip()[1:])}; guidestack rules --presets lists them")
    stack = presets.read(text)
    check_files(stack)
    return stack


class Column:
    """One stack: its text, its controls, its plan, and the image that it made.

    Args:
        page: that it is on.
        letter: its name.
        text: of the stack to begin with.
    """

    def __init__(self, page: Page, letter: str, text: str) -> None:
        self.page, self.letter = page, letter
        self.stack: Stack | None = None
        self.plan: Explained | None = None
        self.cell: Cell | None = None
        self.following = False
        with ui.element("section").classes("stack") as self.area:
            self.area.props["aria-label"] = f"Stack {letter}"
            self.text = ui.textarea(f"Stack {letter}", on_change=lambda event: self.typed(event.value or ""))
            self.text.props("outlined autogrow debounce=300 spellcheck=false autocomplete=off input-class=code")
            self.text.without_auto_validation().props["data-control"] = f"{letter}/text"
            with ui.element("div").classes("plan"):
                self.cost = ui.label().classes("cost")
                self.cost.props["data-said"] = f"{letter}/plan"
                self.notes = ui.label().classes("hint")
                with ui.expansion("Step by step").classes("more").props("dense dense-toggle"):
                    self.steps = ui.label().classes("code table")
            self.result = Result(self)
            self.cards = Cards(self.changed)
            with ui.element("div").classes("copies"):
                for what in ("Text", "Python", "Command"):
                    button = ui.button(what, icon="content_copy", on_click=lambda _, what=what: self.copy(what))
                    button.props("flat dense no-caps size=sm").props["data-control"] = f"{letter}/copy/{what}"
        self.text.value = text

    def typed(self, text: str) -> None:
        """The text was changed: the controls follow it, or it says what is wrong with it."""
        if self.following:
            return
        try:
            self.stack = stack_of(text)
        except GuidestackError as error:
            self.stack = None
            self.text.error = str(error)
            self.cards.area.classes("off")
        else:
            self.text.error = None
            self.cards.area.classes(remove="off")
            self.cards.show(self.stack)
        self.page.settled()

    def changed(self, stack: Stack | None) -> None:
        """A control was changed: the text follows it."""
        if stack is not None:
            self.stack = stack
            self.following = True
            try:
                self.text.value = str(stack)
                self.text.error = None
            finally:
                self.following = False
        self.page.settled()

    def replan(self, settings: Mapping[str, Any] | None, fit: bool) -> str:
        """Show what the stack will cost.

        Args:
            settings: None where one is wrong.
            fit: whether the files can be used.

        Returns:
            What is wrong with the sampler under this stack, or "".
        """
        self.plan, told, notes, steps, unfit = None, "", "", "", ""
        if self.stack is None or self.cards.wrong or settings is None:
            told = "mend what is marked"
        else:
            model = self.page.model
            try:
                begins = bool(self.page.files.given.pictures.paths)
                self.plan = planned(self.stack, settings, model.name, model.networks, begins)
                _, warned = recipe_of(self.stack, settings, model.dtype)
            except UnsupportedSchedulerError as error:
                self.text.error, unfit = "it does not run with this sampler", str(error)
                told = "mend what is marked"
            except GuidestackError as error:
                self.plan, self.text.error = None, str(error)
            else:
                self.text.error = None
                told = self.plan.summary
                notes = "\n".join([*self.plan.notes, *warned])
                steps = "\n".join(map(str, self.plan.planned))
        if not fit:
            self.plan, told = None, "mend what is marked"
        self.cost.text, self.notes.text, self.steps.text = told, notes, steps
        return unfit

    def recipe(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of its image.

        Raises:
            GuidestackError: prompt and stack do not go together.
        """
        assert self.stack is not None  # the page asks when nothing is wrong
        return recipe_of(self.stack, settings, self.page.model.dtype)[0]

    def copy(self, what: str) -> None:
        """Copy the stack's text, or how to make its image elsewhere."""
        settings = self.page.settings()
        if self.stack is None or self.cards.wrong or (settings is None and what != "Text"):
            ui.notify("mend what is marked first", type="warning")
            return
        model = self.page.model
        if what == "Text" or settings is None:
            text = str(self.stack)
        elif what == "Python":
            device = self.page.maker.generator.device
            text = python_of(self.recipe(settings), model.name, model.networks, device, self.page.files.given)
        else:
            text = command_of(self.recipe(settings), model.name, model.networks, self.page.files.given)
        ui.clipboard.write(text)
        ui.notify(f"{what} is copied")


class Result:
    """The image of a cell, as it comes.

    Args:
        column: of the stack that makes it.
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self.seen: Any = None
        with ui.element("div").classes("result"):
            self.frame = ui.element("div").classes("frame")
            self.frame.props["data-picture"] = column.letter
            with self.frame:
                ui.label("no image yet").classes("hint none")
            self.said = ui.label().classes("hint")
            self.said.props["data-said"] = f"{column.letter}/result"
            self.plot = ui.html("", sanitize=False).classes("scales")  # what plot_of wrote

    def show(self, cell: Cell) -> None:
        """Bring what is shown up to the state of the cell."""
        state = cell, cell.state, cell.step
        if state == self.seen:
            return
        self.seen = state
        self.said.classes(remove="said")
        if cell.state == "made":
            self.frame.clear()
            with self.frame:
                picture(cell)
                link = ui.link("the file that makes it again", f"/made/{cell.picture}").classes("hint")
                link.props["download"] = cell.recipe.filename
                link.tooltip("A PNG with its recipe: guidestack generate --like FILE, or give it to this page")
            self.plot.content = plot_of(cell.scales, LETTERS.index(self.column.letter))
            assert cell.report is not None  # of an image that was made
            self.said.text = (
                f"{cell.report.evaluations[0]} evaluations, {cell.seconds:.1f} s: {cell.recipe.guidance}, "
                f"seed {cell.recipe.seed}"
            )
        elif cell.state == "refused":
            if cell.cause:
                self.column.page.files.blame(cell.cause, cell.error)
            self.said.text = cell.error
            self.said.classes("said")
        else:
            self.said.text = {
                "waiting": "waiting",
                "making": f"step {cell.step} of {cell.recipe.steps}",
                "stopped": "stopped",
            }[cell.state]


class Page:
    """The page of one browser tab.

    Args:
        maker: who makes the images.
        model: what it makes them with.
    """

    def __init__(self, maker: Maker, model: Model) -> None:
        self.maker, self.model = maker, model
        self.columns: list[Column] = []
        self.job: Job | None = None
        self.unfit = ""  # what is wrong with the sampler under a stack
        self.ready = False
        ui.colors(primary=BLUE)
        ui.add_css(CSS + STYLE)
        with ui.element("main"):
            with ui.element("header"):
                with ui.element("h1"):
                    ui.label("guidestack play")
                self.status = ui.label("loading the model").classes("hint")
                self.status.props["data-said"] = "model"
            self.fields = self._settings()
            with ui.element("div").classes("bar"):
                self.running = ui.button("Make", icon="play_arrow", on_click=self.make).props("unelevated no-caps")
                self.stopping = ui.button("Stop", icon="stop", on_click=self.stop).props("outline no-caps")
                self.more = ui.button("Add a stack", icon="add", on_click=self.add).props("flat no-caps")
                self.less = ui.button("Drop the last", icon="remove", on_click=self.drop).props("flat no-caps")
                for name, button in {
                    "make": self.running,
                    "stop": self.stopping,
                    "add": self.more,
                    "drop": self.less,
                }.items():
                    button.props["data-control"] = name
                self._upload()
            self.said = ui.label().classes("said")
            self.files = Files(maker.folder, self.settled)
            self.side = ui.element("div").classes("stacks")
            self.sheet = Sheet(self)
        self.stopping.disable()
        self.add()
        self.add()
        self.ready = True
        self.settled()
        ui.timer(0.1, self.refresh)

    def _settings(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        first = {**DEFAULTS, "sampler": self.model.sampler, "prompt": "cat face, noto style, blue background"}
        if self.model.name is not None:
            first["prompt"] = "a red fox in the snow"
        with ui.element("section").classes("settings"):
            for name, hint in HINTS.items():
                if name == "sampler":
                    options = [self.model.sampler, *(one for one in SAMPLERS if one != self.model.sampler)]
                    field: Any = ui.select(
                        options, label=name, value=first[name], with_input=True, new_value_mode="add-unique"
                    )
                    field.props("options-dense")
                else:
                    field = ui.input(name, value=first.get(name, ""), placeholder=hint)
                    field.props("debounce=300 autocomplete=off spellcheck=false")
                field.props("outlined dense").classes(name)
                field.without_auto_validation().props["data-control"] = name
                field.on_value_change(lambda _: self.settled())
                fields[name] = field
        return fields

    def _upload(self) -> None:
        field = upload(".png", self.load, lambda message: setattr(self.said, "text", message))
        button = ui.button("Load an image", icon="upload", on_click=lambda: field.run_method("pickFiles"))
        button.props("flat no-caps").tooltip("Take over how an image of guidestack was made")

    def typed(self) -> dict[str, str]:
        """What stands in the settings; a strength says something beside a picture only."""
        typed = {name: str(field.value or "") for name, field in self.fields.items()}
        return typed if self.files.given.pictures.paths else {**typed, "strength": ""}

    def settings(self) -> dict[str, Any] | None:
        """What the settings say, each wrong one marked; None where one is wrong."""
        found, wrong = read(self.typed(), self.model.name)
        for name, field in self.fields.items():
            field.error = wrong.get(name) or (self.unfit if name == "sampler" and self.unfit else None)
        return None if wrong else found

    def settled(self) -> None:
        """Something was changed: plan everything anew."""
        if not self.ready:
            return
        several = any(column.stack is not None and column.stack.takes_several for column in self.columns)
        self.fields["extra"].set_visibility(several or bool(self.fields["extra"].value))
        self.fields["strength"].set_visibility(bool(self.files.given.pictures.paths))
        self.unfit = ""
        settings = self.settings()
        stacks = [column.stack for column in self.columns if column.stack is not None]
        fit = self.files.settle(stacks, settings["size"] if settings else None, self.maker.own_size)
        unfit = {column.letter: column.replan(settings, fit) for column in self.columns}
        self.unfit = "; ".join(f"stack {letter}: {told}" for letter, told in unfit.items() if told)
        if self.unfit:
            self.settings()
        self.sheet.offer()

    def add(self) -> None:
        """Put one more stack beside the others."""
        if len(self.columns) < len(LETTERS):
            number = len(self.columns)
            with self.side:
                self.columns.append(Column(self, LETTERS[number], FIRST[number]))
            self._beside()

    def drop(self) -> None:
        """Take the last stack away."""
        if len(self.columns) > 1:
            self.columns.pop().area.delete()
            self._beside()

    def _beside(self) -> None:
        self.more.set_enabled(len(self.columns) < len(LETTERS))
        self.less.set_enabled(len(self.columns) > 1)
        self.settled()

    def make(self) -> None:
        """Make an image of each stack from the same noise."""
        settings = self.settings()
        if settings is None or any(column.plan is None for column in self.columns):
            self.said.text = "mend what is marked first"
            return
        self.said.text = ""
        self.stop()
        for column in self.columns:
            column.cell = Cell(column.recipe(settings), self.files.given)
        self.job = Job([column.cell for column in self.columns if column.cell])
        self.maker.start(self.job)

    def stop(self) -> None:
        """Stop what is being made."""
        for job in filter(None, (self.job, self.sheet.job)):
            job.stop()

    def refresh(self) -> None:
        """Show what was made since the last time."""
        loaded = self.maker.loaded
        if loaded.done() and self.status.text.startswith("loading"):
            error = loaded.exception()
            self.status.text = (
                str(error) if error else f"{self.model.name or 'the bundled model'} on {self.maker.generator.device}"
            )
            if error:
                self.status.classes("said")
            self.settled()  # the model's own size is known now
        for column in self.columns:
            if column.cell is not None:
                column.result.show(column.cell)
        self.sheet.refresh()
        self.stopping.set_enabled(any(not job.over for job in filter(None, (self.job, self.sheet.job))))

    async def load(self, event: Any) -> None:
        """Take over what an image says of how it was made; anybody may have written that."""
        event.sender.reset()
        name = Path(event.file.name or "image").name
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            await event.file.save(path)
            try:
                recipe = Recipe.read(read_recipe(path), Path(name))
                recipe.model_to_load(self.model.name)
                self.maker.studio.check_same(recipe)
            except GuidestackError as error:
                self.said.text = str(error).replace(str(path), name)
                return
        self.said.text = ""
        size = "x".join(map(str, recipe.size or ()))
        values = {key: str(getattr(recipe, key)) for key in self.fields if key not in ("size", "strength")}
        values |= {"size": size, "strength": "" if recipe.strength is None else f"{recipe.strength:g}"}
        files = [*recipe.pictures, *(one["name"] for parts in recipe.parts.values() for one in parts)]
        if files:
            self.said.text = f"it was made from files, which it does not hold; give them again: {', '.join(files)}"
        for key, field in self.fields.items():
            if key == "sampler" and values[key] not in field.options:
                field.options.append(values[key])
                field.update()
            field.value = values[key]
        self.columns[0].text.value = recipe.guidance
