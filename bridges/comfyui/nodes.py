"""The nodes: Guidestack Guider, Guidestack Patch and Guidestack Report, for both of ComfyUI's registrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ...guidance.errors import GuidestackError, InputError
from ...guidance.report import Report
from .guided import carrying, guiding, readable

STACK = ("STRING", {"default": "cfg(7)", "multiline": True, "tooltip": "Rules and their order: apg(7) | rescale(0.5)"})
WEAK = ("MODEL", {"tooltip": "The network that rules call weak, as in cfg(2, against='positive@weak')"})
FURTHER = ("negative_2", "negative_3", "negative_4")
"""The inputs of the negative prompts behind the first."""


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

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:  # noqa: N802  # ComfyUI's name
        """The inputs of the node."""
        return {"required": dict(cls.REQUIRED), "optional": dict(cls.OPTIONAL)}


class _StackNode(_Node):
    """A node whose text is a stack."""

    @classmethod
    def VALIDATE_INPUTS(cls, stack: Any = None) -> bool | str:  # noqa: N802  # ComfyUI's name
        """Whether the text is a stack, asked before the graph runs: a message is shown on the node."""
        try:
            if stack is not None:  # None: another node makes the text
                readable(stack)
        except GuidestackError as error:
            return str(error)
        return True


class GuidestackGuider(_StackNode):
    """A GUIDER, for SamplerCustomAdvanced, that guides by a stack."""

    TITLE = "Guidestack Guider"
    DESCRIPTION = "Guides by a stack of rules, such as adaptive(apg(7)) | rescale(0.5)."
    REQUIRED: ClassVar = {"model": ("MODEL", {}), "positive": ("CONDITIONING", {}), "stack": STACK}
    OPTIONAL: ClassVar = {
        "negative": ("CONDITIONING", {"tooltip": "The negative prompt; null takes its place where none is linked"}),
        "null": ("CONDITIONING", {"tooltip": "The empty prompt, for rules that need it beside the negative one"}),
        **{name: ("CONDITIONING", {"tooltip": "A further negative prompt, for perpneg"}) for name in FURTHER},
        "positive_2": ("CONDITIONING", {"tooltip": "A further prompt, for perpneg"}),
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
        positive_2: Any = None,
        weak: Any = None,
        **further: Any,
    ) -> tuple[Any]:
        """The guider.

        Raises:
            InputError: a negative is linked and one before it is not, or as `carrying`.
        """
        import comfy.samplers

        negatives = [negative, *(further.get(name) for name in FURTHER)]
        while negatives and negatives[-1] is None:
            negatives.pop()
        if len(negatives) > 1 and None in negatives:
            missing = ("negative", *FURTHER)[negatives.index(None)]
            raise InputError(f"{FURTHER[len(negatives) - 2]} is linked and {missing} is not; link them in their order")
        against = {"negative" if not i else f"negative:{i}": one for i, one in enumerate(negatives)} | {"null": null}
        guider = comfy.samplers.CFGGuider(carrying(model, readable(stack), weak))
        told = {"positive": positive, "positive:1": positive_2} | {
            # Networks that treat a negative prompt in a way of its own ask the condition what it is.
            name: one and [[text, {**more, "prompt_type": "negative"}] for text, more in one]
            for name, one in against.items()
        }
        guider.inner_set_conds({name: one for name, one in told.items() if one is not None})
        return (guider,)


class GuidestackPatch(_StackNode):
    """A MODEL with a stack, for KSampler and whatever else samples with a positive and a negative prompt."""

    TITLE = "Guidestack Patch"
    DESCRIPTION = "Has samplers that run on the MODEL guide by a stack of rules. Their cfg is set to 1."
    REQUIRED: ClassVar = {"model": ("MODEL", {}), "stack": STACK}
    OPTIONAL: ClassVar = {"weak": WEAK}
    RETURN_TYPES = ("MODEL",)

    def execute(self, model: Any, stack: str, weak: Any = None) -> tuple[Any]:
        """The model; errors as of `carrying`."""
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
            raise InputError("what is linked to Guidestack Report carries no stack; link Guidestack Guider's or Patch's")
        if stack.report is None:
            raise InputError(f"{stack.stack} has not run yet; link the LATENT of the sampler that it guides")
        text = told(stack.report)
        return {"ui": {"text": [text]}, "result": (text, latent)}


def told(report: Report) -> str:
    """A report as text: a line for the run and one for each step, with the means of its traces."""
    lines = [str(report)]
    for step in report.steps:
        traces = "".join(f", {name} {value.float().nanmean():.4g}" for name, value in step.traces.items())
        lines.append(f"{step!r}"[1:-1] + traces)
    return "\n".join(lines)


NODES: Sequence[type[_Node]] = (GuidestackGuider, GuidestackPatch, GuidestackReport)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: node.TITLE for node in NODES}


def as_v3(node: Any) -> type[Any]:
    """A node in the form of ComfyUI's V3 registration."""
    from comfy_api.latest import io

    def socket(name: str, kind: str, more: Mapping[str, Any], optional: bool) -> Any:
        known = io.String if kind == "STRING" else io.Custom(kind)
        return known.Input(name, optional=optional, **more)

    def define_schema(cls: Any) -> Any:
        required = [socket(name, *form, optional=False) for name, form in node.REQUIRED.items()]
        optional = [socket(name, *form, optional=True) for name, form in node.OPTIONAL.items()]
        return io.Schema(
            node_id=node.__name__,
            display_name=node.TITLE,
            category=node.CATEGORY,
            description=node.DESCRIPTION,
            inputs=required + optional,
            outputs=[io.Custom(kind).Output() for kind in node.RETURN_TYPES],
            is_output_node=node.OUTPUT_NODE,
        )

    def execute(cls: Any, **inputs: Any) -> Any:
        done = node().execute(**inputs)
        return io.NodeOutput(*done["result"], ui=done["ui"]) if isinstance(done, dict) else io.NodeOutput(*done)

    members = {"define_schema": classmethod(define_schema), "execute": classmethod(execute), "__doc__": node.__doc__}
    if issubclass(node, _StackNode):

        def validate_inputs(cls: Any, stack: Any = None) -> bool | str:
            return node.VALIDATE_INPUTS(stack)

        members["validate_inputs"] = classmethod(validate_inputs)
    return type(node.__name__, (io.ComfyNode,), members)


async def comfy_entrypoint() -> Any:
    """The nodes as an extension of ComfyUI's V3 registration."""
    from comfy_api.latest import ComfyExtension

    class Guidestack(ComfyExtension):  # type: ignore[misc]  # ComfyUI is not installed where types are checked
        async def get_node_list(self) -> list[type[Any]]:
            return [as_v3(node) for node in NODES]

    return Guidestack()
