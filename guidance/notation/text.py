"""The text form of a stack: ``"during(cfg(4), sigma=(0.2, 1.6)) | rescale(0.7)"``.

Text is parsed with `ast` and never evaluated: what is not a rule, a literal, or ``|`` between rules is an error.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

from ..errors import StackSyntaxError, nearest, reason, shown
from ..reading import check_plain
from ..rule import STACK, Rule, Stack, literal
from .registry import WORDS, filled, find, make, rules

T = TypeVar("T")
MAX_TEXT = 10_000  # characters; longer input is no stack, and the parser's recursion stays bounded
DEEPEST = 100  # calls, tuples and signs inside one another
PRESET = "@"
"""What the name or path of a preset begins with; `as_stack` reads it."""


def bounded(stack: Stack) -> Stack:
    """The stack, if its text is one that `parse` reads.

    Raises:
        StackSyntaxError: it is too long.
    """
    if (length := len(str(stack))) > MAX_TEXT:
        raise StackSyntaxError(f"a stack's text has at most {MAX_TEXT} characters, and this stack's has {length}")
    return stack


def parse(text: str) -> Stack:
    """Read a stack such as ``"during(cfg(4), sigma=(0.2, 1.6)) | rescale(0.7)"``.

    Calls of registered rules with literal arguments, nested where a rule takes a rule, and ``|`` between the rules of a
    stack. ``"stack()"`` is the empty one. Rules apply left to right. No file is read: ``"@PRESET"`` is for `guide`,
    `sample` and whatever else takes a stack.

    Args:
        text: the stack's text form; never evaluated.

    Raises:
        StackSyntaxError: it is something else; the message has the position and the nearest valid name.
        RuleError: a rule refuses its parameters.

    >>> parse("cfg(7.5) | rescale(0.7)").rules
    (CFG(scale=7.5, against=Query(condition='negative', model='main', perturbation=None, grad=False)), \
Rescale(phi=0.7, space='native'))
    """
    line = _line(text, STACK, "'stack()' for the unguided model")
    if line.startswith(PRESET):
        raise StackSyntaxError(
            f"{shown(line)} names a preset, and parse reads no files; give it as it is where a stack goes (guide, "
            "sample, as_denoiser, StackGuider, save_pretrained, --guidance), or read it with "
            "guidestack.guidance.notation.presets.load_preset(NAME)"
        )
    reader, tree = _Reader(line), _tree(line)
    value = reader.value(tree)
    if not isinstance(value, Rule):
        raise reader.error(tree, f"expected a rule such as 'cfg(4)'{_instead(value)}")
    return bounded(value if isinstance(value, Stack) else Stack(value))


def parse_call(text: str, what: str, known: Mapping[str, type[T]]) -> T:
    """Read a name with literal arguments by the grammar of stacks, such as ``"kid(degree=3)"``, or a name by itself.

    Args:
        text: the text; never evaluated.
        what: the text is of, for messages.
        known: the dataclasses that a text may name.

    Raises:
        StackSyntaxError: it is something else; the message has the position and the nearest valid name.
        RuleError: the class refuses its arguments.
    """
    line = _line(text, what, f"a name such as {next(iter(known))!r}")
    reader, tree = _Reader(line, what), _tree(line, what)
    call = ast.copy_location(ast.Call(tree, [], []), tree) if isinstance(tree, ast.Name) else tree
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise reader.error(tree, "expected a name, or a name with literal arguments in parentheses")
    name = call.func.id
    if name not in known:
        raise reader.error(tree, f"unknown {what} {shown(name)}{nearest(name, known)}")
    return reader.called(call, name, lambda positional, named: filled(name, known[name], positional, named))


def _line(text: str, what: str, instead: str) -> str:
    """The text in one line, with single blanks outside of quotes."""
    if not isinstance(text, str):
        raise StackSyntaxError(f"a {what}'s text is a str, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise StackSyntaxError(f"a {what}'s text has at most {MAX_TEXT} characters, got {len(text)}")
    if line := _SPACES.sub(lambda found: _BLANK.sub(" ", found["quoted"] or " "), text).strip():
        return line
    raise StackSyntaxError(f"the text of a {what} is empty; write {instead}")


_SPACES = re.compile(r"""(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\s+""", re.DOTALL)
"""What is between quotes, which stays, and the blanks of all kinds elsewhere."""
_BLANK = re.compile(r"[\t\n\v\f\r]")
_DOUBTFUL = re.compile(r"\\|\d[^\W\d_]")
"""What Python may warn of: a backslash, a letter right behind a digit."""


def _tree(line: str, what: str = STACK) -> ast.expr:
    try:
        if not _DOUBTFUL.search(line):
            return ast.parse(line, mode="eval").body
        with warnings.catch_warnings(action="error"):  # not always: it is not for several threads at once
            return ast.parse(line, mode="eval").body
    except SyntaxError as error:
        place = error.offset or line.find("\0") + 1 or len(line)  # Python names no place for NUL, nor for the end
        raise StackSyntaxError(
            f"cannot read the {what} {shown(line)} at character {place}: {error.msg.partition(':')[0]}"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise StackSyntaxError(f"cannot read the {what} {shown(line)}: {reason(error)}") from None


def _instead(value: Any) -> str:
    """Say how to write a rule in the place of what is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"; a scale of classifier-free guidance is written cfg({literal(value)})"
    if isinstance(value, tuple) and value and all(isinstance(one, Rule) for one in value):
        return f"; the rules of a stack stand between bars: {' | '.join(map(str, value))}"
    return ""


class _Reader:
    """From the syntax tree of `line`, the text of a `what`, to values."""

    def __init__(self, line: str, what: str = STACK) -> None:
        self.line, self.what, self.depth = line, what, 0

    @cached_property
    def signatures(self) -> dict[str, str]:
        """Of every rule, for hints: what is written right needs no list of them."""
        return {entry.name: entry.signature for entry in rules()}

    def error(self, node: ast.expr, message: str) -> StackSyntaxError:
        column = len(self.line.encode()[: node.col_offset].decode()) + 1  # ast counts bytes
        return StackSyntaxError(f"cannot read the {self.what} {shown(self.line)} at character {column}: {message}")

    def value(self, node: ast.expr) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(node, f"more than {DEEPEST} calls, tuples and signs inside one another")
        found = self._value(node)
        self.depth -= 1
        return found

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                try:
                    check_plain(node.value)
                except ValueError as error:
                    raise self.error(node, str(error)) from None
                return node.value
            case ast.Name() if node.id in WORDS:
                return WORDS[node.id]
            case ast.Name():
                raise self.error(node, f"{shown(node.id)} is not a call; {self._word(node.id)}")
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                operand = self.value(node.operand)
                if isinstance(operand, bool) or not isinstance(operand, int | float):
                    raise self.error(node, "a sign stands before numbers only")
                return -operand if isinstance(node.op, ast.USub) else operand
            case ast.Tuple() | ast.List():
                return tuple(self.value(item) for item in node.elts)
            case ast.BinOp(op=ast.BitOr()):
                return self._joined(node)
            case ast.Call(func=ast.Name(id=name)) if self.what == STACK:
                return self._rule(node, name)
        allowed = "rules, literals and '|' between rules" if self.what == STACK else "numbers and texts in quotes"
        raise self.error(node, f"only {allowed} are allowed")

    def _hint(self, name: str) -> str:
        return nearest(name, [*self.signatures, STACK])

    def _word(self, name: str) -> str:
        """What may be meant by a word by itself."""
        if self.what != STACK:
            return "expected a number such as 4, or a text in quotes"
        hint = self._hint(name)
        if name in self.signatures:
            return f"write {name} with its arguments, {self.signatures[name]}"
        if hint.endswith("?"):
            return f"rules are written with their arguments{hint}"
        return "expected a number such as 4, a text in quotes, or a rule with its arguments"

    def _joined(self, node: ast.BinOp) -> Stack:
        sides, rules = [node.right], []
        while isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.BitOr):
            node = node.left
            sides.append(node.right)
        for side in reversed([*sides, node.left]):
            rule = self.value(side)
            if not isinstance(rule, Rule):
                raise self.error(side, "'|' stands between rules only")
            rules.append(rule)
        return Stack(*rules)  # at once: a rule may need one that stands further on

    def _rule(self, node: ast.Call, name: str) -> Rule:
        if name != STACK and find(name) is None:
            raise self.error(node, f"unknown rule {shown(name)}{self._hint(name)}")
        return self.called(node, name, lambda positional, named: make(name, positional, named))

    def called(self, node: ast.Call, name: str, made: Callable[[list[Any], dict[str, Any]], T]) -> T:
        """What `made` makes of the arguments of a call."""
        positional = [self.value(argument) for argument in node.args]
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg in named:
                raise self.error(keyword.value, f"{name} takes its arguments one by one, each once")
            named[keyword.arg] = self.value(keyword.value)
        try:
            return made(positional, named)
        except StackSyntaxError as error:
            raise self.error(node, str(error)) from None
