"""The nodes: Guidestack Guider, Guidestack Patch and Guidestack Report, for both of ComfyUI's registrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from ...guidance.errors import GuidestackError, InputError
from ...guidance.report import Report
from .guided import INPUTS, answering, carrying, guiding, readable

STACK = ("STRING", {"default": "cfg(7)", "multiline": True, "tooltip": "Rules and their order: apg(7) | rescale(0.5)"})
WEAK = ("MODEL", {"tooltip": "The network that rules call weak, as in cfg(2, against='positive@weak')"})


class _Node:
    """What ComfyUI reads of a node; see its documentation of custom nodes."""

    TITLE: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    REQUIRED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    OPTIONAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    RETURN_TYPES: ClassVar[tuple[str, ...]]
    OUTPUT_NODE: ClassVar[bool] = False
    FUNCTION: ClassVar[str] = "execute"
    CATEGORY: ClassVar[str] = "sampling/custom_sampling/guiders"
    execute: ClassVar[Callable[..., Any]]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """The inputs of the node."""
        return {"required": dict(cls.REQUIRED), "optional": dict(cls.OPTIONAL)}

    @classmethod
    def VALIDATE_INPUTS(cls, stack: Any = None) -> bool | str:
        """Whether the text is a stack, asked before the graph runs: a message is shown on the node."""
        try:
            if stack is not None:  # a node without a text, or one whose text another node makes
                readable(stack)
        except GuidestackError as error:
            return str(error)
        return True


class GuidestackGuider(_Node):
    """A GUIDER, for SamplerCustomAdvanced, that guides by a stack."""

    TITLE = "Guidestack Guider"
    DESCRIPTION = "Guides by a stack of rules, such as adaptive(apg(7)) | rescale(0.5)."
    REQUIRED: ClassVar = {"model": ("MODEL", {}), "positive": ("CONDITIONING", {}), "stack": STACK}
    OPTIONAL: ClassVar = {
        "negative": ("CONDITIONING", {"tooltip": "The negative prompt; null takes its place where none is linked"}),
        "null": ("CONDITIONING", {"tooltip": "The empty prompt, for rules that need it beside the negative one"}),
        **{
            name: ("CONDITIONING", {"tooltip": "A further prompt of this kind, for perpneg"})
            for name in INPUTS.values()
        },
        "weak": WEAK,
    }
    RETURN_TYPES = ("GUIDER",)

    def execute(
        self,
        model: Any,
        positive: Any,
        stack: str,
        negative: Any = None,
        null: Any = None,
        weak: Any = None,
        **further: Any,
    ) -> tuple[Any]:
        """The guider.

        Raises:
            InputError: a condition that the stack asks for is missing, a negative is linked and the one before it is
                not, or as in `carrying`.
        """
        import comfy.samplers

        linked = {"positive": positive, "negative": negative, "null": null} | further
        for before, behind in pairwise(["negative", *(one for one in INPUTS.values() if one.startswith("negative"))]):
            if linked.get(before) is None and linked.get(behind) is not None:
                raise InputError(f"{behind} is linked and {before} is not; link them in their order")
        names = {link: name for name, link in INPUTS.items()}
        conds = {names.get(link, link): one for link, one in linked.items() if one is not None}
        for name in conds.keys() - {"positive", "positive:1"}:
            # Networks that treat a negative prompt in a way of its own ask the condition what it is.
            conds[name] = [[text, {**more, "prompt_type": "negative"}] for text, more in conds[name]]
        rules = readable(stack)
        answering(rules, conds)
        guider = comfy.samplers.CFGGuider(carrying(model, rules, weak))
        guider.inner_set_conds(conds)
        return (guider,)


class GuidestackPatch(_Node):
    """A MODEL with a stack, for KSampler and whatever else samples with a positive and a negative prompt."""

    TITLE = "Guidestack Patch"
    DESCRIPTION = "Has samplers that run on the MODEL guide by a stack of rules. Their cfg is set to 1."
    REQUIRED: ClassVar = {"model": ("MODEL", {}), "stack": STACK}
    OPTIONAL: ClassVar = {"weak": WEAK}
    RETURN_TYPES = ("MODEL",)

    def execute(self, model: Any, stack: str, weak: Any = None) -> tuple[Any]:
        """The model; errors as in `carrying`."""
        return (carrying(model, readable(stack), weak),)


class GuidestackReport(_Node):
    """What the last run of a stack evaluated, as text."""

    TITLE = "Guidestack Report"
    DESCRIPTION = "What a stack evaluated, step by step, once the LATENT is there. Link the GUIDER or the MODEL."
    REQUIRED: ClassVar = {"latent": ("LATENT", {"tooltip": "The sampler's result, which is handed on"})}
    OPTIONAL: ClassVar = {"guider": ("GUIDER", {}), "model": ("MODEL", {})}
    RETURN_TYPES = ("STRING", "LATENT")
    OUTPUT_NODE = True

    def execute(self, latent: Any, guider: Any = None, model: Any = None) -> dict[str, Any]:
        """The text and the latent.

        Raises:
            InputError: neither carries a stack, or it has not run.
        """
        if (guider is None) == (model is None):
            raise InputError("link either the GUIDER or the MODEL that carries the stack to Guidestack Report")
        stack = guiding(guider.model_patcher if model is None else model)
        if stack is None:
            raise InputError("what is linked to Guidestack Report carries no stack; link what Guidestack's nodes make")
        if stack.report is None:
            raise InputError(f"{stack.stack} has not run yet; link the LATENT of the sampler that it guides")
        text = report_text(stack.report)
        return {"ui": {"text": [text]}, "result": (text, latent)}


def report_text(report: Report) -> str:
    """A report as text: a line for the run and one for each step, with the means of its traces."""
    lines = [str(report)]
    for step in report.steps:
        traces = "".join(f", {name} {value.float().nanmean():.4g}" for name, value in step.traces.items())
        lines.append(f"{step!r}"[1:-1] + traces)
    return "\n".join(lines)


NODES: Sequence[type[_Node]] = (GuidestackGuider, GuidestackPatch, GuidestackReport)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: node.TITLE for node in NODES}


def as_v3(node: type[_Node]) -> type[Any]:
    """A node in the form of ComfyUI's V3 registration."""
    from comfy_api.latest import io

    def sockets(forms: Mapping[str, tuple[Any, ...]], optional: bool) -> list[Any]:
        known = {"STRING": io.String}
        return [
            known.get(kind, io.Custom(kind)).Input(name, optional=optional, **more)
            for name, (kind, more) in forms.items()
        ]

    class Node(io.ComfyNode):  # type: ignore[misc]  # ComfyUI is not installed where types are checked
        @classmethod
        def define_schema(cls) -> Any:
            return io.Schema(
                node_id=node.__name__,
                display_name=node.TITLE,
                category=node.CATEGORY,
                description=node.DESCRIPTION,
                inputs=sockets(node.REQUIRED, False) + sockets(node.OPTIONAL, True),
                outputs=[io.Custom(kind).Output() for kind in node.RETURN_TYPES],
                is_output_node=node.OUTPUT_NODE,
            )

        @classmethod
        def validate_inputs(cls, stack: Any = None) -> bool | str:
            return node.VALIDATE_INPUTS(stack)

        @classmethod
        def execute(cls, **inputs: Any) -> Any:
            done = node().execute(**inputs)
            return io.NodeOutput(*done["result"], ui=done["ui"]) if isinstance(done, dict) else io.NodeOutput(*done)

    Node.__name__ = node.__name__
    return Node


async def comfy_entrypoint() -> Any:
    """The nodes as an extension of ComfyUI's V3 registration."""
    from comfy_api.latest import ComfyExtension

    class Guidestack(ComfyExtension):  # type: ignore[misc]  # as above
        async def get_node_list(self) -> list[type[Any]]:
            return [as_v3(node) for node in NODES]

    return Guidestack()
