"""Parts that a user adds to a model's pipeline: LoRAs, ControlNets, an IP-Adapter, another autoencoder or scheduler.

Weights are safetensors; nothing else is opened. A part that is for another model is refused before anything is made.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...guidance.bounds import LARGEST_SCALE
from ...guidance.errors import InputError, UnsupportedPipelineError, reason, shown
from ...guidance.reading import exists, is_folder, read_bytes
from ..families.lookup import denoisers_of, family_of
from ..families.record import FAMILIES, Pipeline
from .loading import LARGEST_INDEX, ends_of, fingerprint, first_line, folder_of, loaded, pipeline_class, scheduler_in

CONTROLNETS = {
    "UNet2DConditionModel": "ControlNetModel",
    "SD3Transformer2DModel": "SD3ControlNetModel",
    "FluxTransformer2DModel": "FluxControlNetModel",
    "HunyuanDiT2DModel": "HunyuanDiT2DControlNetModel",
}
"""The class of the ControlNets of each network that has some."""
TASKS = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}
"""What an image begins from, each with how the names of diffusers' pipelines for it end."""
SHARED = ("cross_attention_dim", "block_out_channels", "joint_attention_dim", "attention_head_dim")
"""What a ControlNet and the network whose blocks it adds to have in common in their configurations."""
OPTIONS = {
    "lora": "--lora",
    "controlnet": "--controlnet",
    "ip_adapter": "--ip-adapter",
    "vae": "--vae",
    "scheduler": "--scheduler-config",
}
"""The kinds of parts, each with the option that gives it."""


@dataclass(frozen=True)
class Part:
    """One part that a user adds to a pipeline: a file or a folder, and its scale.

    Args:
        name: a file or folder; of a ControlNet or an autoencoder also the id of a model on the hub.
        scale: how much of it; None for 1, or for what an image that is made again says.
    """

    name: str
    scale: float | None = None

    @classmethod
    def read(cls, text: str, option: str) -> Part:
        """A part from ``"FILE"`` or ``"FILE=SCALE"``.

        Raises:
            InputError: no file, or a scale that is no number between -1000 and 1000.
        """
        name, sign, number = text.rpartition("=")
        try:
            scale = float(number) if sign else None
        except ValueError:  # a name with a sign in it
            name, scale = text, None
        if scale is None:
            name = text
        elif not math.isfinite(scale) or abs(scale) > LARGEST_SCALE:
            raise InputError(f"{option} {shown(text)}: a scale is a number between -1000 and 1000, such as 0.8")
        if not name:
            raise InputError(f"{option} is FILE or FILE=SCALE; got {shown(text)}")
        return cls(name, scale)

    @property
    def amount(self) -> float:
        """Its scale, 1 where none was said."""
        return 1.0 if self.scale is None else self.scale


@dataclass(frozen=True)
class Parts:
    """All parts that a user adds to a model's pipeline.

    Args:
        lora: LoRAs, each a .safetensors file or a folder with one.
        controlnet: ControlNets, each a folder or hub id; of several each follows a picture of its own.
        ip_adapter: a .safetensors file; its image encoder is the model's, or a folder ``image_encoder`` beside the file
            or beside its folder.
        vae: an autoencoder, a folder or hub id.
        scheduler: a scheduler's configuration, ``scheduler_config.json`` or a folder with it.
    """

    lora: tuple[Part, ...] = ()
    controlnet: tuple[Part, ...] = ()
    ip_adapter: Part | None = None
    vae: Part | None = None
    scheduler: Part | None = None

    @property
    def by_kind(self) -> dict[str, tuple[Part, ...]]:
        """The parts of each kind of which there are some."""
        one = {"ip_adapter": self.ip_adapter, "vae": self.vae, "scheduler": self.scheduler}
        named = {"lora": self.lora, "controlnet": self.controlnet, **{k: (v,) for k, v in one.items() if v}}
        return {kind: parts for kind, parts in named.items() if parts}

    def identities(self) -> dict[str, list[dict[str, Any]]]:
        """What identifies each part: name, scale and, of what is on this disk, a fingerprint. Nothing is loaded.

        Raises:
            InputError: there is no such file or folder, or it holds no weights in safetensors.
        """
        return {kind: [_identity(kind, part) for part in parts] for kind, parts in self.by_kind.items()}

    def fit(self, pipe: Pipeline, task: str = "text") -> Pipeline:
        """The pipeline of the same model for a task, with the parts in it.

        Args:
            pipe: a pipeline, on the CPU; its components are taken over, and its network is changed by LoRAs.
            task: as in `Pictures.task`.

        Raises:
            InputError: a part is for another model, or cannot be loaded.
            UnsupportedPipelineError: there is no such pipeline of this model, or no record for it.
        """
        nets = [_controlnet(part, pipe) for part in self.controlnet]
        pipe = as_task(pipe, task, nets)
        if self.vae is not None:
            pipe.vae = _vae(self.vae, pipe)
        if self.scheduler is not None:
            pipe.scheduler = own_scheduler(self.scheduler.name)
        for place, part in enumerate(self.lora):
            add_lora(part, pipe, f"lora{place}")
        if self.lora:
            pipe.set_adapters([f"lora{place}" for place in range(len(self.lora))], [one.amount for one in self.lora])
        if self.ip_adapter is not None:
            _add_ip_adapter(self.ip_adapter, pipe)
        return pipe

    def arguments(self, takes: Sequence[str] | frozenset[str]) -> dict[str, Any]:
        """The arguments of a pipeline for the scales of parts that are not set in the pipeline itself."""
        scales = [one.amount for one in self.controlnet]
        if not scales or "controlnet_conditioning_scale" not in takes:
            return {}
        return {"controlnet_conditioning_scale": scales if len(scales) > 1 else scales[0]}


def as_task(pipe: Pipeline, task: str, controlnets: Sequence[nn.Module] = ()) -> Pipeline:
    """The pipeline of the same components for another task.

    Args:
        pipe: a pipeline.
        task: one of `TASKS`.
        controlnets: ControlNets to go into it.

    Returns:
        `pipe` itself where it is for that task, or takes a picture as it is.

    Raises:
        InputError: its network sees a mask, and there is none.
        UnsupportedPipelineError: there is no such pipeline, or no record for it.
    """
    name, nets = family_of(pipe).pipeline, list(controlnets)
    followed = "ControlNet" if nets or "ControlNet" in name else ""
    stem = re.sub(r"(ControlNet)?(Img2Img|Inpaint|Inpainting)?Pipeline$", "", name)
    wanted = f"{stem}{followed}{TASKS[task]}Pipeline"
    _check_mask(pipe, task)
    if name == wanted and not nets:
        return pipe
    if wanted in FAMILIES:
        cls: Any = pipeline_class(wanted)
        more = {"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {}
        return cls.from_pipe(pipe, torch_dtype=None, **more)
    if task == "text" or (task == "image" and "image" in _takes(pipe) and not nets):
        return pipe
    what = {"image": "begins from a picture", "inpaint": "paints in a picture", "text": "follows a ControlNet"}[task]
    raise UnsupportedPipelineError(
        f"guidestack knows no pipeline of a {name}'s components that {what}: there is no record of a {wanted}"
    )


def _check_mask(pipe: Pipeline, task: str) -> None:
    """Refuse to use a network that sees a mask beside the samples without one.

    Raises:
        InputError: it would be.
    """
    family = family_of(pipe)
    if task == "inpaint" or family.denoiser != "unet" or getattr(pipe, "vae", None) is None:
        return
    if pipe.unet.config.in_channels == 2 * pipe.vae.config.latent_channels + 1:
        raise InputError("this model's network was made for inpainting and sees a mask; give --image and --mask")


def _takes(pipe: Pipeline) -> frozenset[str]:
    return frozenset(inspect.signature(pipe.__call__).parameters)


def _identity(kind: str, part: Part) -> dict[str, Any]:
    """Name, scale and fingerprint of a part.

    Raises:
        InputError: it is not there, or not what it has to be.
    """
    if kind in ("lora", "ip_adapter"):
        digest = digest_of(part, OPTIONS[kind])
    elif kind == "scheduler":
        own_scheduler(part.name)
        data = read_bytes(_scheduler_file(part.name), "scheduler's file", LARGEST_INDEX)
        digest = hashlib.sha256(data).hexdigest()[:16]
    else:
        folder = folder_of(part.name)
        if folder is None:
            return {"name": part.name, "scale": part.amount}
        if not exists(folder / "config.json"):
            raise InputError(
                f"no network at {OPTIONS[kind]} {str(folder)!r}: expected a folder with config.json and safetensors, "
                "as save_pretrained writes it, or the id of one on the hub"
            )
        digest = fingerprint(folder)
    return {"name": part.name, "fingerprint": digest, "scale": part.amount}


def digest_of(part: Part, option: str) -> str:
    """Sixteen hex digits of a part's file of weights.

    Raises:
        InputError: there is none, or it is no .safetensors file.
    """
    return hashlib.sha256(ends_of(weights_file(part.name, option))).hexdigest()[:16]


def weights_file(name: str, option: str) -> Path:
    """The file of weights that a name means.

    Raises:
        InputError: there is none, or it is no .safetensors file.
    """
    path = Path(name)
    if is_folder(path):
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise InputError(f"{option} {shown(name)} is a folder with {len(files)} .safetensors files; name the file")
        return files[0]
    if path.suffix != ".safetensors":
        raise InputError(
            f"{option} takes a .safetensors file, since other formats can run code when they are loaded; got "
            f"{shown(name)}"
        )
    if not exists(path):
        raise InputError(f"{option} {shown(name)}: there is no such file")
    return path


def own_scheduler(name: str) -> Any:
    """The scheduler that a user's configuration describes.

    Raises:
        InputError: there is no such file, or it describes none.
    """
    return scheduler_in(_scheduler_file(name), f"--scheduler-config {shown(name)} names no scheduler of diffusers")


def _scheduler_file(name: str) -> Path:
    return Path(name) / "scheduler_config.json" if is_folder(name) else Path(name)


def _weights(name: str, option: str) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        InputError: it cannot be read as safetensors.
    """
    from safetensors.torch import load_file

    path = weights_file(name, option)
    try:
        found: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors has an error of its own, the system others
        raise InputError(f"{option} {shown(name)} cannot be read as safetensors: {reason(error)}") from error
    return found


def add_lora(part: Part, pipe: Pipeline, adapter: str, option: str = "--lora") -> None:
    """Load a LoRA into a pipeline's networks, where it is on.

    Args:
        part: the file; its scale is left out here.
        pipe: the pipeline.
        adapter: the name that it gets there.
        option: that gave it, for messages.

    Raises:
        InputError: the file has no LoRA, or one for another model.
        UnsupportedPipelineError: the pipeline takes none, or peft is not installed.
    """
    told = f"{option} {part.name}"
    if not hasattr(pipe, "load_lora_weights"):
        raise UnsupportedPipelineError(f"{type(pipe).__name__} takes no LoRA; leave {option} out")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError(f"{option} needs peft: pip install 'guidestack[lora]'") from error
    weights = _weights(part.name, option)
    if not any("lora" in name.lower() or ".hada_" in name or ".lokr_" in name for name in weights):
        raise InputError(f"{told} holds no LoRA: none of its {len(weights)} tensors is one; a checkpoint is --model")
    more = {"unet_config": pipe.unet.config} if "XL" in type(pipe).__name__ else {}
    try:
        wanted = pipe.lora_state_dict(dict(weights), **more)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        pipe.load_lora_weights(dict(weights), adapter_name=adapter)
    except Exception as error:  # what does not fit fails in as many ways as there are networks
        raise InputError(f"{told} is for another model than this {type(pipe).__name__}: {first_line(error)}") from error
    count = sum("lora" in name and "alpha" not in name for name in wanted)
    used = sum(
        f".{adapter}" in name
        for module in pipe.components.values()
        if isinstance(module, nn.Module)
        for name, _ in module.named_parameters()
    )
    if used < count:
        raise InputError(
            f"{told} is for another model than this {type(pipe).__name__}: {count - used} of its {count} matrices have "
            "no place in it"
        )


def _add_ip_adapter(part: Part, pipe: Pipeline) -> None:
    """Load an IP-Adapter, and its image encoder where the pipeline has none.

    Raises:
        InputError: the file has no IP-Adapter, or one for another model, or no image encoder is there.
        UnsupportedPipelineError: the pipeline takes none.
    """
    told = f"--ip-adapter {part.name}"
    if not hasattr(pipe, "load_ip_adapter") or "ip_adapter_image" not in _takes(pipe):
        raise UnsupportedPipelineError(f"{type(pipe).__name__} takes no IP-Adapter; leave --ip-adapter out")
    weights: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in _weights(part.name, "--ip-adapter").items():
        group, _, rest = name.partition(".")
        if group in weights:
            weights[group][rest] = value
    if not all(weights.values()):
        raise InputError(f"{told} holds no IP-Adapter: it has no tensors of image_proj and of ip_adapter")
    if getattr(pipe, "image_encoder", None) is None:
        pipe.register_modules(image_encoder=_image_encoder(part, pipe))
    try:
        pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
        pipe.set_ip_adapter_scale(part.amount)
    except Exception as error:  # what does not fit fails in as many ways as there are networks
        raise InputError(f"{told} is for another model than this {type(pipe).__name__}: {first_line(error)}") from error


def _image_encoder(part: Part, pipe: Pipeline) -> Any:
    from transformers import CLIPVisionModelWithProjection

    folder = weights_file(part.name, "--ip-adapter").parent
    places = [folder / "image_encoder", folder.parent / "image_encoder", folder.parent / "models" / "image_encoder"]
    found = next((one for one in places if exists(one / "config.json")), None)
    if found is None:
        raise InputError(
            f"--ip-adapter {part.name} needs an image encoder, and this model has none: put its folder beside the "
            "file, as image_encoder"
        )
    try:
        return CLIPVisionModelWithProjection.from_pretrained(
            found, use_safetensors=True, local_files_only=True, dtype=pipe.dtype
        )
    except Exception as error:  # the library raises what a damaged file makes it run into
        raise InputError(f"cannot load the image encoder {str(found)!r}: {first_line(error)}") from error


def _controlnet(part: Part, pipe: Pipeline) -> nn.Module:
    """A ControlNet for a pipeline's network.

    Raises:
        InputError: it cannot be loaded, or is for another network.
        UnsupportedPipelineError: there are none for this network.
    """
    import diffusers

    network = denoisers_of(pipe, family_of(pipe))[0]
    kind = CONTROLNETS.get(type(network).__name__)
    if kind is None:
        raise UnsupportedPipelineError(f"there is no ControlNet for a {type(network).__name__}; leave --controlnet out")
    told = f"--controlnet {part.name}"
    net: nn.Module = _alike(_own_loaded(getattr(diffusers, kind), part, told, pipe), network, told, SHARED)
    return net


def _vae(part: Part, pipe: Pipeline) -> nn.Module:
    """An autoencoder in place of a pipeline's.

    Raises:
        InputError: it cannot be loaded, or has other latents.
        UnsupportedPipelineError: the pipeline has none.
    """
    own = getattr(pipe, "vae", None)
    if own is None:
        raise UnsupportedPipelineError(f"{type(pipe).__name__} has no autoencoder; leave --vae out")
    told = f"--vae {part.name}"
    vae: Any = _alike(_own_loaded(type(own), part, told, pipe), own, told, ("latent_channels",))
    sides = [len(one.config.get("block_out_channels", ())) for one in (vae, own)]
    if sides[0] != sides[1]:
        raise InputError(f"{told} is for another model: it has {sides[0]} levels, this model's own has {sides[1]}")
    return vae  # type: ignore[no-any-return]


def _own_loaded(cls: Any, part: Part, told: str, pipe: Pipeline) -> nn.Module:
    folder = folder_of(part.name)
    return loaded(cls, part.name if folder is None else folder, "", told).to(pipe.dtype)


def _alike(module: Any, own: Any, told: str, keys: Sequence[str]) -> Any:
    """The module, if its configuration has what that of `own` has.

    Raises:
        InputError: it is for another model.
    """
    configs: list[Mapping[str, Any]] = [module.config, own.config]
    for key in keys:
        theirs, ours = (config.get(key) for config in configs)
        if key in configs[0] and key in configs[1] and _listed(theirs) != _listed(ours):
            raise InputError(f"{told} is for another model: its {key} is {theirs}, this model's is {ours}")
    return module


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
