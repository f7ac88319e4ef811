"""How to make an image of the page elsewhere: on the command line, and in Python."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pprint import pformat
from typing import Any

from ...guidance.notation.presets import as_stack
from ...guidance.rule import models_of
from ...pipelines.models.loading import scheduler_of
from ...pipelines.models.recipe import Recipe, split
from ...samplers import by_name
from ...samplers.lists import arguments
from ...samplers.names import levels_of

Networks = Mapping[str, str]


def command_of(recipe: Recipe, model: str | None, networks: Networks) -> str:
    """The command that makes an image, quoted for a shell."""
    words = ["guidestack", "generate", "--guidance", recipe.guidance]
    options = {
        "--negative": recipe.negative,
        "--extra-prompt": recipe.extra,
        "--model": model or "",
        "--size": "x".join(map(str, recipe.size or ())),
        "--dtype": "" if recipe.dtype == "float32" else recipe.dtype,
    }
    words += [word for name, value in options.items() if value for word in (name, value)]
    words += [word for name in _asked(recipe, networks) for word in ("--network", f"{name}={networks[name]}")]
    words += ["--sampler", recipe.sampler, "--steps", str(recipe.steps), "--seed", str(recipe.seed)]
    return shlex.join([*words, "--", recipe.prompt])


def python_of(recipe: Recipe, model: str | None, networks: Networks, device: str) -> str:
    """Lines of Python that make an image, to be run as they are."""
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
    options: dict[str, Any] = {"num_inference_steps": recipe.steps}
    if (levels := levels_of(recipe.sampler)) is not None:
        options |= arguments(by_name(recipe.sampler, scheduler_of(model)), levels, recipe.steps)
    if recipe.size:
        options["height"], options["width"] = recipe.size
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
        f"pipe.scheduler = by_name({recipe.sampler!r}, pipe.scheduler)",
        f"guided = gs.guide(pipe, {recipe.guidance!r}{more})",
        "image = guided(",
        f"    prompt=[{recipe.prompt!r}],",
        *(f"    {name}={pformat(value, compact=True, width=100)}," for name, value in options.items()),
        f"    generator=[torch.Generator().manual_seed({recipe.seed})],",
        ").images[0]",
    ]
    return "\n".join(lines) + "\n"


def _asked(recipe: Recipe, networks: Networks) -> list[str]:
    """The names of the networks that are to be given, of those that the stack asks."""
    return sorted(models_of(as_stack(recipe.guidance)).intersection(networks))
