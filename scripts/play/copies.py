"""How to make an image of the page elsewhere: on the command line, and in Python."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

from ...guidance.notation.presets import as_stack
from ...guidance.objective import OBJECTIVE, name_of
from ...guidance.rule import models_of, objectives_of
from ...pipelines.models.loading import scheduler_of
from ...pipelines.models.pictures import MASK
from ...pipelines.models.recipe import Recipe, split
from ...samplers import by_name
from ...samplers.lists import arguments
from ...samplers.names import levels_of
from .files import Given

Networks = Mapping[str, str]


def command_of(recipe: Recipe, model: str | None, networks: Networks, given: Given | None = None) -> str:
    """The command that makes an image, quoted for a shell. Files have the names that they have for their user."""
    words = ["guidestack", "generate", "--guidance", recipe.guidance]
    options = {
        "--negative": recipe.negative,
        "--extra-prompt": recipe.extra,
        "--model": model or "",
        "--size": "x".join(map(str, recipe.size or ())),
        "--dtype": "" if recipe.dtype == "float32" else recipe.dtype,
        "--strength": "" if recipe.strength is None else f"{recipe.strength:g}",
    }
    words += [word for name, value in options.items() if value for word in (name, value)]
    words += [word for name in _asked(recipe, networks) for word in ("--network", f"{name}={networks[name]}")]
    words += (given or Given()).options(_steered(recipe))
    words += ["--sampler", recipe.sampler, "--steps", str(recipe.steps), "--seed", str(recipe.seed)]
    return shlex.join([*words, "--", recipe.prompt])


def python_of(recipe: Recipe, model: str | None, networks: Networks, device: str, files: Given | None = None) -> str:
    """Lines of Python that make an image, to be run as they are beside the files that it is made from."""
    files = files or Given()
    dtype = "" if recipe.dtype == "float32" else f"dtype=torch.{recipe.dtype}"
    imports = ["import torch"]
    if model is None:
        device = "" if device == "cpu" else f"device={device!r}"
        load = f"gs.load_emoji({', '.join(filter(None, (dtype, device)))})"
    else:
        imports.append("from diffusers import DiffusionPipeline")
        load = f"DiffusionPipeline.from_pretrained({', '.join(filter(None, (repr(model), dtype)))}).to({device!r})"
    given = {name: networks[name] for name in _asked(recipe, networks)}
    more = f", networks={given!r}" if given else ""
    steered = {name: files.paths[OBJECTIVE + name].name for name in sorted(files.objectives.keys() & _steered(recipe))}
    if steered:
        more += f", objectives={{{', '.join(f'{name!r}: Image.open({path!r})' for name, path in steered.items())}}}"
    fitted, taken = _fitted(files, recipe.size)
    if steered or taken:
        imports.append("from PIL import Image")
    options: dict[str, Any] = {"num_inference_steps": recipe.steps}
    if (levels := levels_of(recipe.sampler)) is not None:
        options |= arguments(by_name(recipe.sampler, scheduler_of(model)), levels, recipe.steps)
    if recipe.size and not taken:
        options["height"], options["width"] = recipe.size
    if recipe.strength is not None:
        options["strength"] = recipe.strength
    negative: Any = recipe.negative
    if recipe.several:
        negative = [split(recipe.negative)]
        options["extra_prompt"] = [split(recipe.extra)]
    elif negative:
        negative = [negative]
    if negative:
        options = {"negative_prompt": negative, **options}
    lines = [
        *imports,
        "",
        "import guidestack as gs",
        "from guidestack.samplers import by_name",
        "",
        f"pipe = {load}",
        *fitted,
        f"pipe.scheduler = by_name({recipe.sampler!r}, pipe.scheduler)",
        f"guided = gs.guide(pipe, {recipe.guidance!r}{more})",
        "image = guided(",
        f"    prompt=[{recipe.prompt!r}],",
        *taken,
        *(f"    {name}={pformat(value, compact=True, width=100)}," for name, value in options.items()),
        f"    generator=[torch.Generator().manual_seed({recipe.seed})],",
        ").images[0]",
    ]
    return "\n".join(lines) + "\n"


def _steered(recipe: Recipe) -> set[str]:
    """The names of the objectives that the stack steers by."""
    return {name_of(text) for text in objectives_of(as_stack(recipe.guidance))}


def _fitted(files: Given, size: tuple[int, int] | None) -> tuple[list[str], list[str]]:
    """Lines that put LoRAs into the pipeline and let it begin from a picture, and lines of its call that give one."""
    loras = [(Path(part.name).name, part.amount) for part in files.parts.lora]
    lines = [f"pipe.load_lora_weights({name!r}, adapter_name='lora{place}')" for place, (name, _) in enumerate(loras)]
    if loras:
        names = [f"lora{place}" for place in range(len(loras))]
        lines.append(f"pipe.set_adapters({names!r}, {[scale for _, scale in loras]!r})")
    if files.pictures.task == "text":
        return lines, []
    kind = "Inpainting" if files.pictures.mask else "Image2Image"
    lines += [f"from diffusers import AutoPipelineFor{kind}", "", f"pipe = AutoPipelineFor{kind}.from_pipe(pipe)"]
    call = []
    for name, argument, mode in (("image", "image", "RGB"), (MASK, "mask_image", "L")):
        if name in files.pictures.paths:
            how = "Image.Resampling.LANCZOS" if name == "image" else "Image.Resampling.NEAREST"
            sized = f".resize({size[::-1]}, {how})" if size else ""
            call.append(f"    {argument}=[Image.open({files.paths[name].name!r}).convert({mode!r}){sized}],")
    return lines, call


def _asked(recipe: Recipe, networks: Networks) -> list[str]:
    """The names of the networks that are to be given, of those that the stack asks."""
    return sorted(models_of(as_stack(recipe.guidance)).intersection(networks))
