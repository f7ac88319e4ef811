"""What other programs write into their images, as far as it can be said in options of ``guidestack generate``.

A1111 and its forks write one text, ``parameters``; ComfyUI writes the graph that ran, ``prompt``: both as texts of a
PNG, and in the EXIF of other files. Anybody may have written either: values are read as texts and numbers within
bounds, and nothing that they name is opened.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from ...guidance.bounds import LAST_SEED, LONGEST, MOST_STEPS
from ...guidance.errors import InputError, shown
from ...guidance.reading import json_of
from ...samplers.names import canonical
from .files import FORMATS, KEY, opened, size_of

MOST_NODES = 10_000  # of a graph
ENTRY = re.compile(r'\s*([\w][\w /.+-]*?):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
"""One entry of the last line of A1111's text, ``NAME: VALUE``; a value with a comma in it is quoted."""
EXTRA_NETWORK = re.compile(r"<(\w+):([^:>]+)(?::[^>]*)?>")
WEIGHTED = re.compile(r"(?<!\\)\([^()]*:\s*[0-9.]+\s*\)|(?<!\\)[\[\]]|(?<!\\)\(\(")
SPACINGS = ("karras", "exponential", "beta")
"""Spacings of sigmas that a sampler's name may end in; other programs keep them apart from it."""
PLAIN_SPACINGS = ("normal", "automatic", "uniform")


@dataclass(frozen=True)
class Elsewhere:
    """The settings that another program wrote into an image.

    Args:
        program: its name.
        options: what could be read, by the name of the option of ``guidestack generate``.
        model: what it calls the model; "" where it does not say.
        left: what could not be carried over, each as its own words.
    """

    program: str
    options: Mapping[str, Any]
    model: str = ""
    left: tuple[str, ...] = field(default_factory=tuple)


def read_elsewhere(path: Path) -> Elsewhere | None:
    """What another program wrote into a file; None where neither of the two did.

    Raises:
        InputError: no such file, no PNG, JPEG or WebP, or a graph without a sampler that is known.
    """
    image = opened(path, FORMATS)
    texts = image.text if isinstance(image, PngImagePlugin.PngImageFile) else _in_exif(image)
    if KEY in texts:  # guidestack's own, which says more
        return None
    if isinstance(parameters := texts.get("parameters"), str):
        return _of_text(parameters)
    if isinstance(graph := texts.get("prompt"), str):
        return _of_graph(graph, path)
    return None


def _in_exif(image: Image.Image) -> dict[str, str]:
    """What the EXIF of a JPEG or WebP says, by the names that the same texts have in a PNG."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged entries
            exif = image.getexif()
            comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
            entries = [value for value in exif.values() if isinstance(value, str)]
    except Exception:  # the reader of EXIF raises what damaged entries make it run into
        return {}
    texts = {"parameters": _comment(comment)} if comment else {}
    for entry in entries:  # of ComfyUI's nodes for WebP: NAME:JSON, in an entry each
        name, colon, text = entry.partition(":")
        if colon and name.lower() == "prompt":
            texts["prompt"] = text
    return texts


def _comment(value: str | bytes) -> str:
    """The text of EXIF's UserComment, whose first eight bytes name its encoding."""
    if isinstance(value, str):
        return value
    kind, text = value[:8], value[8 : 8 + 16 * LONGEST]
    if kind.rstrip(b"\0") != b"UNICODE":
        return (text if kind.rstrip(b"\0") in (b"ASCII", b"") else value[: 16 * LONGEST]).decode(errors="replace")
    # UTF-16 in either order of its bytes: that of the file, which writers do not keep to. Most letters are below 256.
    little = text.startswith(b"\xff\xfe") or text[1::2].count(0) > text[::2].count(0)
    return text.decode("utf-16-le" if little else "utf-16-be", errors="replace").lstrip("\ufeff")


class _Reader:
    """Collects options, and what could not become one."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.left: list[str] = []

    def take(self, name: str, value: Any, said: str) -> None:
        """Make a value the option `name`, if it is within its bounds."""
        try:
            self.options[name] = _OPTIONS[name](value)
        except (ValueError, TypeError, OverflowError, InputError):
            self.left.append(f"{said} {shown(value)}")

    def take_text(self, name: str, text: str) -> None:
        """Make a prompt an option, without what is no text for other programs."""
        for kind, what in EXTRA_NETWORK.findall(text):
            self.left.append(f"<{kind}:{shown(what)[1:-1]}> ({'give it with --lora FILE' if kind == 'lora' else kind})")
        text = EXTRA_NETWORK.sub("", text).strip().strip(",").strip()
        if WEIGHTED.search(text):
            self.left.append(f"weights in brackets ({name.replace('_', ' ')}: they are read as text)")
        if text:
            self.take(name, text, name)

    def read(self, program: str, model: str) -> Elsewhere:
        """Return the collected options, and what could not be converted."""
        return Elsewhere(program, self.options, model[:LONGEST], tuple(dict.fromkeys(self.left)))


def _text(value: Any) -> tuple[str, ...]:
    if not isinstance(value, str) or len(value) > LONGEST or "\0" in value:
        raise ValueError
    return (value,)


def _number(low: int, high: int) -> Any:
    def read(value: Any) -> int:
        number = int(value)
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError
        return number

    return read


def _scale(value: Any) -> tuple[str, ...]:
    if not 0 <= (scale := float(value)) <= 1000:
        raise ValueError
    return (f"cfg({scale:g})",)


def _stack(value: Any) -> tuple[str, ...]:
    from ...guidance.notation.text import parse  # an image names no preset's file

    return (str(parse(str(value))),)


def _strength(value: Any) -> float:
    if not 0 < (strength := float(value)) <= 1:
        raise ValueError
    return strength


def _size(value: Any) -> str:
    width, _, height = str(value).partition("x")
    size_of(f"{height}x{width}")
    return f"{height}x{width}"


_OPTIONS: dict[str, Any] = {
    "prompts": _text,
    "negative": _text,
    "guidance": _scale,
    "stack": _stack,
    "sampler": lambda value: canonical(str(value)[:100]),
    "steps": _number(1, MOST_STEPS),
    "seed": _number(0, LAST_SEED),
    "size": _size,
    "strength": _strength,
}
"""How each option is read from what other programs write for it; sizes are theirs, width first."""


def _of_text(text: str) -> Elsewhere:
    """A1111's text: the prompt, a line ``Negative prompt: ...``, and a line of entries."""
    found = _Reader()
    lines = text[: 4 * LONGEST].replace("\r\n", "\n").rstrip().split("\n")
    entries: dict[str, str] = {}
    if re.match(r"\s*Steps:\s*[0-9]+", lines[-1]):
        entries = {name.strip(): value.strip().strip('"') for name, value in ENTRY.findall(lines.pop())}
    whole = "\n".join(lines)
    prompt, _, negative = whole.partition("Negative prompt:")
    found.take_text("prompts", prompt.strip())
    found.take_text("negative", negative.strip())
    model = entries.pop("Model", "") or entries.get("Model hash", "")
    sampler, spacing = entries.pop("Sampler", None), entries.pop("Schedule type", "").lower()
    if sampler is not None:
        _take_sampler(found, sampler, spacing)
    named = {
        "Steps": "steps",
        "Seed": "seed",
        "CFG scale": "guidance",
        "Size": "size",
        "Denoising strength": "strength",
    }
    for name, option in named.items():
        if name in entries:
            found.take(option, entries.pop(name), name)
    for ignored in ("Model hash", "Version"):
        entries.pop(ignored, None)
    found.left += [f"{name}: {shown(value)}" for name, value in entries.items()]
    return found.read("A1111", model)


def _take_sampler(found: _Reader, sampler: str, spacing: str) -> None:
    """A sampler and the spacing of its levels, which other programs keep apart."""
    if spacing in SPACINGS:
        before = len(found.left)
        found.take("sampler", f"{sampler}-{spacing}", "sampler")
        if len(found.left) == before:
            return
        found.left.pop()
    found.take("sampler", sampler, "sampler")
    if spacing and spacing not in PLAIN_SPACINGS:
        found.left.append(f"the spacing {shown(spacing)} of the sampler's steps")


def _of_graph(text: str, path: Path) -> Elsewhere:
    """ComfyUI's graph: what the sampler node in it was given, and the nodes that were not understood.

    Raises:
        InputError: it is no graph, or has none or several samplers.
    """
    try:
        nodes = json_of(text)
    except ValueError:
        nodes = None
    good = isinstance(nodes, dict) and 0 < len(nodes) <= MOST_NODES
    if not good or not all(isinstance(node, dict) and isinstance(node.get("inputs"), dict) for node in nodes.values()):
        raise InputError(f"{path} has a 'prompt' that is no graph of ComfyUI")
    graph = _Graph(nodes)
    samplers = [key for key in nodes if graph.kind(key) in SAMPLERS]
    if len(samplers) != 1:
        many = f"{len(samplers)} samplers" if samplers else f"no sampler of {', '.join(SAMPLERS)}"
        raise InputError(f"{path} is of a ComfyUI graph with {many}; give its settings as options")
    found = _Reader()
    used, inputs = graph.settings(samplers[0])
    for name, option in {"steps": "steps", "seed": "seed", "noise_seed": "seed", "cfg": "guidance"}.items():
        if name in inputs:
            found.take(option, inputs[name], name)
    if "sampler_name" in inputs:
        _take_sampler(found, str(inputs["sampler_name"]), str(inputs.get("scheduler", "")).lower())
    if inputs.get("denoise", 1) != 1:
        found.take("strength", inputs["denoise"], "denoise")
    for link, option in {"positive": "prompts", "negative": "negative"}.items():
        texts = [node for node in graph.behind(inputs.get(link)) if isinstance(nodes[node]["inputs"].get("text"), str)]
        used |= set(texts)
        if len(texts) == 1:
            found.take_text(option, nodes[texts[0]]["inputs"]["text"])
        elif link in inputs:
            found.left.append(f"{link}: {len(texts)} texts lead to it")
    for node in graph.behind(inputs.get("latent_image")):
        if {"width", "height"} <= set(nodes[node]["inputs"]):
            used.add(node)
            found.take("size", "{width}x{height}".format(**nodes[node]["inputs"]), "size")
    models = [(node, nodes[node]["inputs"]) for node in graph.behind(inputs.get("model"))]
    named = {node: str(given[key]) for node, given in models for key in ("ckpt_name", "unet_name") if key in given}
    stacks = {node: given["stack"] for node, given in models if "stack" in given}
    used |= set(named) | set(stacks)
    for stack in [*stacks.values(), *([inputs["stack"]] if "stack" in inputs else [])]:
        found.take("stack", stack, "the stack")
    if "stack" in found.options:
        found.options["guidance"] = found.options.pop("stack")
    found.left += [f"the node {shown(graph.kind(key))}" for key in nodes if key not in used | graph.of_kind(SAID)]
    return found.read("ComfyUI", next(iter(named.values()), ""))


SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced")
SAID = ("SaveImage", "PreviewImage", "VAEDecode", "GuidestackReport")
"""Nodes that change nothing of how an image is made."""


class _Graph:
    """The nodes of a graph by their keys, and what they are linked to."""

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        self.nodes = nodes

    def kind(self, key: str) -> str:
        """The class of a node."""
        return str(self.nodes[key].get("class_type", ""))

    def of_kind(self, kinds: tuple[str, ...]) -> set[str]:
        """The nodes of some classes."""
        return {key for key in self.nodes if self.kind(key) in kinds}

    def settings(self, sampler: str) -> tuple[set[str], dict[str, Any]]:
        """The inputs of a sampler, and which nodes have them: a custom sampler has them in nodes of their own."""
        used, inputs = {sampler}, dict(self.nodes[sampler]["inputs"])
        for link in ("guider", "sampler", "sigmas", "noise"):
            if (node := self.linked(inputs.get(link))) is not None:
                used.add(node)
                inputs = {**self.nodes[node]["inputs"], **inputs}
        return used, inputs

    def linked(self, value: Any) -> str | None:
        """The node that an input is linked to: ``[KEY, OUTPUT]``."""
        key = value[0] if isinstance(value, list) and len(value) == 2 else None
        return key if isinstance(key, str) and key in self.nodes else None

    def behind(self, value: Any) -> Iterator[str]:
        """The node that an input is linked to and those behind it, each once; loops end."""
        waiting, seen = [self.linked(value)], set()
        while waiting:
            key = waiting.pop(0)
            if key is None or key in seen:
                continue
            seen.add(key)
            yield key
            waiting += [self.linked(one) for one in self.nodes[key]["inputs"].values()]
