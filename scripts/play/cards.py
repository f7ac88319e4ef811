"""The controls of a stack on the page: a card for each rule, with cards inside a wrapper's card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui

from ...guidance.errors import GuidestackError
from ...guidance.notation.registry import entry_of
from ...guidance.rule import Rule, Stack
from .controls import (
    Control,
    Place,
    added,
    changed,
    controls,
    inside,
    moved,
    names,
    places,
    replaced,
    unwrapped,
    wrapped,
    wrappers,
)


class Card:
    """One rule: a line for each parameter, and a menu.

    Args:
        cards: of the stack.
        place: of the rule.
        rule: the rule.
    """

    def __init__(self, cards: Cards, place: Place, rule: Rule) -> None:
        self.cards, self.place = cards, place
        self.shown = controls(rule)
        self.typed = {one.name: one.text for one in self.shown}
        self.lines: dict[str, Line] = {}
        entry = entry_of(rule)
        with ui.element("section").classes("rule") as section:
            section.props["aria-label"] = entry.name
            with ui.element("div").classes("head"):
                ui.label(entry.name).classes("name").tooltip(entry.summary)
                self._menu(rule)
            self._lines([one for one in self.shown if one.main])
            if rest := [one for one in self.shown if not one.main]:
                with ui.expansion("more").classes("more").props("dense dense-toggle"):
                    self._lines(rest)
            for name, inner in inside(rule):
                with ui.element("div").classes("inside"):
                    for number, part in enumerate(inner.rules if isinstance(inner, Stack) else (inner,)):
                        Card(cards, (*place, name, number), part)
            self.said = ui.label().classes("said")

    def _lines(self, shown: list[Control]) -> None:
        for one in shown:
            self.lines[one.name] = Line(self, one)

    def _menu(self, rule: Rule) -> None:
        place = self.place
        actions: dict[str, Callable[[Stack], Stack]] = {
            "Move left": lambda stack: moved(stack, place, -1),
            "Move right": lambda stack: moved(stack, place, 1),
            "Remove": lambda stack: replaced(stack, place),
        }
        if inside(rule):
            actions["Unwrap"] = lambda stack: unwrapped(stack, place)
        with ui.button(icon="more_vert").props('flat dense round size=sm aria-label="Change this rule"'), ui.menu():
            for label, action in actions.items():
                ui.menu_item(label, lambda _, action=action: self.act(action))
            ui.separator()
            for name in wrappers():
                ui.menu_item(
                    f"Wrap in {name}", lambda _, name=name: self.act(lambda stack: wrapped(stack, place, name))
                )

    def act(self, action: Callable[[Stack], Stack]) -> None:
        """Change the stack in another way than by a parameter; an error is shown on the card."""
        self.cards.act(action, self.said)

    def touched(self, name: str, text: str) -> None:
        """A parameter was given another value, as text."""
        self.typed[name] = text
        try:
            stack = changed(self.cards.stack, self.place, self.typed)
        except GuidestackError as error:
            self.cards.wrong.add(self.place)
            self.lines[name].say(str(error))
            self.cards.changed(None)
        else:
            self.cards.wrong.discard(self.place)
            for line in self.lines.values():
                line.say("")
            self.said.text = ""
            self.cards.stack = stack
            self.cards.changed(stack)


class Line:
    """One parameter: its name, and what it is set with.

    Args:
        card: of its rule.
        control: the parameter.
    """

    def __init__(self, card: Card, control: Control) -> None:
        self.card, self.control = card, control
        self.following = False  # whether a widget is being set to what another one says
        self.slider: Any = None
        label = f"{'/'.join(map(str, card.place))}/{control.name}"
        with ui.element("div").classes(f"line {control.kind}"):
            name = ui.label(control.name)
            if control.about:
                name.tooltip(control.about)
            if control.slider:
                self.slider = self._slider()
            self.field = self._field()
            for widget in filter(None, (self.slider, self.field)):
                widget.props["data-control"] = label if widget is self.field else f"{label}/slider"
                widget.props["aria-label"] = control.name

    def _field(self) -> Any:
        control = self.control
        if control.kind == "flag":
            return ui.checkbox(value=control.text == "True", on_change=lambda event: self.take(str(event.value)))
        if control.kind == "choice":
            options = {one: one or "none" for one in control.valid}
            field: Any = ui.select(options, value=control.text, on_change=lambda event: self.take(event.value))
            return field.without_auto_validation().props("dense options-dense borderless")
        field = ui.input(value=control.text, on_change=lambda event: self.take(event.value or ""))
        if control.optional:
            field.props["placeholder"] = "none"
        return field.without_auto_validation().props("dense borderless debounce=250 autocomplete=off spellcheck=false")

    def _slider(self) -> Any:
        scale = self.control.slider
        assert scale is not None  # of those that have one
        options: dict[str, Any] = {"min": 0, "max": scale.last, "step": 1}
        if self.control.kind == "window":
            value: dict[str, float] = dict(zip(("min", "max"), self._places(self.control.text), strict=True))
            return ui.range(**options, value=value, on_change=lambda event: self.slid(event.value))
        return ui.slider(
            **options, value=self._places(self.control.text)[0], on_change=lambda event: self.slid(event.value)
        )

    def _places(self, text: str) -> list[int]:
        """Where the slider stands for a text; at its ends where the text says nothing."""
        scale = self.control.slider
        assert scale is not None  # of those that have one
        try:
            found = [scale.place(float(one)) for one in text.strip("() ").split(",")]
        except ValueError:
            found = []
        if self.control.kind == "window":
            return found if len(found) == 2 else [0, scale.last]
        return found[:1] or [0]

    def slid(self, value: Any) -> None:
        """The slider was moved: the field follows."""
        scale = self.control.slider
        if self.following or value is None or scale is None:
            return
        several = (value["min"], value["max"]) if isinstance(value, dict) else (value,)
        text = ", ".join(f"{scale.value(one):g}" for one in several)
        self._follow(self.field, text)
        self.card.touched(self.control.name, text)

    def take(self, text: str) -> None:
        """The field was changed: the slider follows."""
        if self.following:
            return
        if self.slider is not None:
            found = self._places(text)
            self._follow(self.slider, found[0] if len(found) == 1 else dict(zip(("min", "max"), found, strict=True)))
        self.card.touched(self.control.name, text)

    def _follow(self, widget: Any, value: Any) -> None:
        self.following = True
        try:
            widget.value = value
        finally:
            self.following = False

    def say(self, message: str) -> None:
        """Show what is wrong beside the parameter, or nothing."""
        if self.control.kind == "flag":
            self.card.said.text = message
        else:
            self.field.error = message or None


class Cards:
    """The controls of one stack.

    Args:
        told: called with the new stack when a control made one, and with None when a control is wrong.
    """

    def __init__(self, told: Callable[[Stack | None], None]) -> None:
        self.changed = told
        self.stack = Stack()
        self.wrong: set[Place] = set()
        self.area = ui.element("div").classes("cards")
        with ui.element("div").classes("add"):
            self.adding = ui.select(names(), label="Add a rule", with_input=True, on_change=self._add)
            self.adding.props("dense options-dense")
            self.adding.props["data-control"] = "add-rule"
        self.said = ui.label().classes("said")

    def show(self, stack: Stack) -> None:
        """Make the controls anew."""
        self.stack = stack
        self.wrong.clear()
        self.said.text = ""
        self.area.clear()
        with self.area:
            for place, rule in places(stack):
                if len(place) == 1:
                    Card(self, place, rule)
            if not stack.rules:
                ui.label("stack() is the model without guidance").classes("hint")

    def act(self, action: Callable[[Stack], Stack], said: Any) -> None:
        """Change the stack; the controls are made anew, or the error is shown in `said`."""
        try:
            stack = action(self.stack)
        except GuidestackError as error:
            said.text = str(error)
        else:
            self.show(stack)
            self.changed(stack)

    def _add(self, event: Any) -> None:
        if event.value:
            self.act(lambda stack: added(stack, event.value), self.said)
            self.adding.value = None
