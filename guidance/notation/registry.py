"""Names for rules, and the papers behind them. Text and mappings of stacks: `text` and `config` beside this file."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import RuleError, StackSyntaxError, nearest, shown
from ..fields import parameters
from ..rule import STACK, Rule, Stack, literal

RULES = "rules"  # the key of a stack's list of rules in mappings
WORDS: dict[str, Any] = {"inf": math.inf}  # names that stand for values in text


@dataclass(frozen=True)
class Source:
    """Where rules are from: a Python file, as `load_rules` imported it.

    Args:
        path: absolute path of the file.
        digest: the first 16 hexadecimal digits of the SHA-256 of its contents.
    """

    path: Path
    digest: str

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.name


@dataclass(frozen=True)
class Entry:
    """One registered rule.

    Args:
        name: its name in text and YAML.
        rule: its class.
        references: BibTeX entries.
        examples: texts of stacks that show the rule.
        source: the file that registered it; None for a rule of guidestack, of a package or of a program.
    """

    name: str
    rule: type[Rule]
    references: tuple[str, ...]
    examples: tuple[str, ...] = ()
    source: Source | None = None

    @property
    def summary(self) -> str:
        """First line of the rule's docstring."""
        return (inspect.getdoc(self.rule) or "").splitlines()[0]

    @property
    def signature(self) -> str:
        """Parameters with their defaults, e.g. ``cfg(scale, against='negative')``."""
        return signature(self.name, self.rule)


def signature(name: str, kind: type) -> str:
    """How a dataclass is called: its name in text, and its parameters with their defaults."""
    parts = [f.name if f.default is dataclasses.MISSING else f"{f.name}={literal(f.default)}" for f in parameters(kind)]
    return f"{name}({', '.join(parts)})"


_ENTRIES: dict[str, Entry] = {}
OTHERS: set[str] = set()
"""Names of the modules that registered something else than rules: metrics, or records of pipelines."""
RUNNING: list[str] = []
"""Names of the modules of files that are being imported by `load_rules`, the innermost last."""
R = TypeVar("R", bound=type[Rule])
T = TypeVar("T")


def register(name: str, *, references: Sequence[str] = (), example: str | Sequence[str] = ()) -> Callable[[R], R]:
    """Class decorator: give a rule its name in text, YAML and on the command line. Third parties use it too.

    Args:
        name: a Python identifier that no other rule has.
        references: BibTeX entries of the papers it implements.
        example: text of a stack that shows the rule, which `doctor` tries on a pipeline and whose evaluations are
            counted for the table of rules; a wrapper stands around ``cfg(3)``, a rule that only reshapes what others
            made stands behind it. Several texts where the rule asks different things of a pipeline. By default the
            rule with its defaults, if all its parameters have one.

    Raises:
        RuleError: the name is taken or is no identifier, or the class is not a frozen dataclass.
    """

    def decorate(rule: R) -> R:
        if not name.isidentifier() or name in (STACK, RULES, *WORDS):
            raise RuleError(f"a rule's name is an identifier, and not a word of the grammar; got {name!r}")
        if name in _ENTRIES:
            taken = _ENTRIES[name]
            where = f" of {taken.source.name}" if taken.source else ""
            raise RuleError(f"the rule name {name!r} is taken by {taken.rule.__name__}{where}; choose another name")
        if not getattr(getattr(rule, "__dataclass_params__", None), "frozen", False):
            raise RuleError(f"{rule.__name__} must be a frozen dataclass: put @register above @dataclass(frozen=True)")
        texts = (example,) if isinstance(example, str) else tuple(example)
        if not texts and all(one.default is not dataclasses.MISSING for one in parameters(rule)):
            texts = (f"{name}()",)
        _ENTRIES[name] = Entry(name, rule, tuple(references), texts)
        rule._name = name
        return rule

    return decorate


def rules() -> tuple[Entry, ...]:
    """Every registered rule, by name; the rules of installed packages are imported first."""
    importlib.import_module("..rules", __package__)  # the rules import this file to register themselves
    importlib.import_module(".plugins", __package__).load_installed()  # it imports this file as well
    return tuple(_ENTRIES[name] for name in sorted(_ENTRIES))


def find(name: object) -> Entry | None:
    """The rule of that name; None where there is none.

    Installed packages are imported only for a name that is not known without them.
    """
    importlib.import_module("..rules", __package__)
    if name not in _ENTRIES:
        rules()
    return _ENTRIES.get(name) if isinstance(name, str) else None


def entry_of(rule: Rule) -> Entry:
    """The entry of the class of `rule`.

    Raises:
        RuleError: the class is not registered.
    """
    for entry in _ENTRIES.values():
        if entry.rule is type(rule):
            return entry
    raise RuleError(f"{type(rule).__name__} has no name; decorate the class with @register")


def make(name: str, positional: Sequence[Any], named: Mapping[str, Any]) -> Rule:
    """The rule `name` with these arguments.

    Raises:
        StackSyntaxError: an unknown, missing or repeated argument.
        RuleError: the rule refuses a value.
    """
    if name == STACK:
        if named:
            raise StackSyntaxError(f"{STACK} takes rules only, got the argument {next(iter(named))!r}")
        return Stack(*positional)
    return filled(name, _ENTRIES[name].rule, positional, named)


def filled(name: str, kind: type[T], positional: Sequence[Any], named: Mapping[str, Any]) -> T:
    """The dataclass `kind`, which messages call `name`, with these arguments.

    Raises:
        StackSyntaxError: an unknown, missing or repeated argument.
        RuleError: the class refuses a value.
    """
    fields = parameters(kind)
    names = [field.name for field in fields]
    if len(positional) > len(names):
        wanted = signature(name, kind)
        raise StackSyntaxError(f"{name} takes {len(names)} arguments at most, got {len(positional)}: {wanted}")
    arguments = dict(zip(names, positional, strict=False))
    for key, value in named.items():
        if key not in names:
            raise StackSyntaxError(f"{name} has no argument {shown(key)}{nearest(str(key), names)}")
        if key in arguments:
            raise StackSyntaxError(f"{name} got {key!r} twice")
        arguments[key] = value
    for field in fields:
        if field.name not in arguments and field.default is dataclasses.MISSING:
            raise StackSyntaxError(f"{name} needs {field.name!r}: {signature(name, kind)}")
    return kind(**arguments)


def citation(stack: Rule) -> str:
    """Return the papers behind the rules of `stack` as BibTeX, each once, in the rules' order; "" for the empty stack.

    Args:
        stack: a rule or a stack, of registered rules.

    >>> from guidestack import parse
    >>> print(citation(parse("cfg(4)")).splitlines()[0])
    @article{ho2022classifier,
    """
    references: dict[str, None] = {}
    for rule in stack.parts():
        if not isinstance(rule, Stack):
            references.update(dict.fromkeys(entry_of(rule).references))
    return "\n\n".join(references)
