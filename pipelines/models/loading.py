"""Loading the model a user names: a folder or a hub id, safetensors only."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ...guidance.errors import InputError, UnsupportedPipelineError, cut, shown
from ...guidance.reading import exists, is_folder, json_of, read_bytes
from ...guidance.words import counted
from ...samplers.names import OWN, by_name, canonical, default
from .. import guide as guide  # its import enters the family records
from ..families.record import FAMILIES
from ..families.suggest import nearest_records
from .bundled import EMOJI
from .hub import reachable, why
from .pretrained import SUBFOLDER

PICKLES = ("*.bin", "*.pt", "*.ckpt", "*.pth", "*.pkl")
INDEX = "model_index.json"
DEVICES = ("cpu", "cuda", "mps", "xpu")
LARGEST_INDEX = 1_000_000  # bytes of model_index.json
LONGEST_NAME = 100  # characters of the name of a component, and of the pipeline's class


def quiet() -> None:
    """Keep the libraries' own log lines and progress bars off the terminal."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(logging.CRITICAL)  # what is an error is raised, and said in one line
        library.utils.logging.disable_progress_bar()


def check_device(device: str) -> None:
    """Refuse a device that cannot be used, before a model is loaded.

    Raises:
        InputError: it cannot.
    """
    import torch

    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # a backend that is not there, or keeps no numbers, says so in an error of its own
        why = "expected cpu, cuda (NVIDIA's or AMD's), cuda:1, mps (Apple's) or xpu (Intel's)"
        if device.partition(":")[0] in DEVICES:
            why = first_line(error)
        raise InputError(f"device {shown(device)} cannot be used: {why}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, and the second if the first is a heading."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return cut(f"{first} {others[0].strip()}" if others and first.endswith(":") else first, 300)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. On a CPU and on MPS that is a RuntimeError like any other."""
    import torch

    words = ("DefaultCPUAllocator", "out of memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(one in str(error) for one in words)
    )


@contextmanager
def memory(device: Any, advice: str) -> Iterator[None]:
    """Say in one line that memory ran out, and what to do.

    Raises:
        InputError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if lacks_memory(error):
            raise InputError(f"out of memory on {device}; {advice}") from error
        raise


def chosen_device(given: str | None) -> str:
    """The device that is `given`, if it can be used; the accelerator of this machine for None, else the CPU.

    Raises:
        InputError: it cannot be used.
    """
    import torch

    if given is not None:
        check_device(given)
        return given
    accelerators = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
    return next((name for name, one in accelerators.items() if one.is_available()), "cpu")


def chosen_dtype(given: str | None, device: str, model: str | None) -> str:
    """The type of weights that is `given`; for None float32 on a CPU, and half precision elsewhere.

    That is float16 for a model with a UNet, and bfloat16 for another, which were trained in it: float16 ends at 65504.
    """
    if given is not None or device.partition(":")[0] == "cpu":
        return given or "float32"
    folder = folder_of(model)
    try:
        name = class_of(folder if folder is not None else _downloaded(str(model), INDEX).parent)
    except InputError:  # what is wrong with it is said where it is loaded
        return "float16"
    record = FAMILIES.get(name)
    return "float16" if record is None or record.denoiser == "unet" else "bfloat16"


def made_with(device: str) -> dict[str, str]:
    """Return what an image's last bit depends on beside its recipe: the libraries' versions, and the device."""
    import diffusers
    import torch
    import transformers

    where = torch.device(device)
    if where.type == "cuda":
        place = torch.cuda.get_device_name(where)
    else:
        place = f"cpu, {counted(torch.get_num_threads(), 'thread')}" if where.type == "cpu" else where.type
    return {one.__name__: str(one.__version__) for one in (torch, diffusers, transformers)} | {"device": place}


def _index(folder: Path) -> dict[str, Any]:
    """Read the model index of a folder, ``model_index.json``, whose ``_class_name`` is a string.

    Raises:
        InputError: it is no model folder.
    """
    index = folder / INDEX
    if not exists(index):
        lacks = "it has no model_index.json" if is_folder(folder) else "there is no such folder here"
        raise InputError(
            f"no model at {str(folder)!r}: {lacks}; expected a folder that save_pretrained wrote, or the id of a model "
            "on the hub"
        )
    try:
        components = json_of(read_bytes(index, "model index", LARGEST_INDEX))
    except ValueError:
        components = None
    own = components.get("_class_name") if isinstance(components, dict) else None
    if not isinstance(components, dict) or not isinstance(own, str) or not is_word(own):
        raise InputError(f"{index} is no model index: expected JSON with '_class_name', the name of a class")
    for name, kind in components.items():
        if name.startswith("_") or kind == [None, None]:
            continue
        if is_component(kind):
            if not is_word(name):
                raise InputError(f"{index} has a component {shown(name)}: expected a word, the name of its folder")
        elif is_folder(folder / name):  # else it is a setting of the pipeline's
            raise InputError(f"{index}: {shown(name)} is {shown(kind)}; expected a library and a class, or null twice")
    return components


def is_word(name: str) -> bool:
    """Whether a name may be that of a component or a class."""
    return len(name) <= LONGEST_NAME and name.isidentifier()


def is_component(kind: Any) -> bool:
    """Whether a value of a model index is that of a component which is there: a library and a class."""
    return isinstance(kind, list) and len(kind) == 2 and all(isinstance(one, str) for one in kind)


def class_of(folder: Path) -> str:
    """The pipeline class of a model folder.

    Raises:
        InputError: it is no model folder.
    """
    return str(_index(folder)["_class_name"])


def components_of(folder: Path) -> list[str]:
    """The names of the components of a model folder.

    Raises:
        InputError: it is no model folder.
    """
    return [name for name in _index(folder) if not name.startswith("_")]


def scheduler_of(model: str | Path | None) -> Any:
    """The scheduler of a model, without the model.

    Args:
        model: a folder, or a hub id, whose scheduler's file is downloaded; None for the bundled model.

    Raises:
        InputError: there is no such model, or it has no scheduler of diffusers.
    """
    name, folder = str(model), model if isinstance(model, Path) else folder_of(model)
    if folder is not None:
        _index(folder)
        path = folder / "scheduler" / "scheduler_config.json"
    else:
        path = _downloaded(name, "scheduler/scheduler_config.json")
    return scheduler_in(path, f"{model or folder} has no scheduler/scheduler_config.json that names one of diffusers")


def scheduler_in(path: Path, lacking: str) -> Any:
    """The scheduler that a configuration's file describes.

    Args:
        path: of ``scheduler_config.json``.
        lacking: the message where it describes none.

    Raises:
        InputError: there is no such file, or it describes none of diffusers.
    """
    import diffusers

    try:
        config = json_of(read_bytes(path, "scheduler's file", LARGEST_INDEX))
        cls = getattr(diffusers, str(config["_class_name"]), None)
    except (InputError, ValueError, KeyError, TypeError):
        cls = None
    if not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
        raise InputError(lacking)
    scheduler: Any = cls
    return scheduler.from_config(config)


def _downloaded(name: str, file: str) -> Path:
    """A file of a model on the hub.

    Raises:
        InputError: it cannot be had.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if isinstance(path := try_to_load_from_cache(name, file), str):
        return Path(path)
    asked = reachable(name)
    try:
        return Path(hf_hub_download(name, file, local_files_only=not asked))
    except Exception as error:  # of the network, of the hub, or of the id
        raise InputError(f"cannot load the model {shown(name)}: {why(error, asked)}") from error


def chosen_sampler(given: str | None, model: str | Path | None, wanted: Sequence[str] = ("dpm++2m",)) -> str:
    """The short name of the sampler that is `given`; for None the first of `wanted` that the model can use, else own.

    Args:
        given: as in `canonical`.
        model: as in `scheduler_of`.
        wanted: short names; the bundled model can use the first.

    Raises:
        InputError: an unknown sampler, or a model on the hub that cannot be had. What a folder lacks is said where the
            model is loaded.
    """
    if given is not None:
        if (name := canonical(given)) != OWN:
            by_name(name)  # a package that it lacks is named before a model is loaded
        return name
    if model is None:
        return wanted[0]
    try:
        return default(scheduler_of(model), wanted)
    except InputError:
        if folder_of(str(model)) is None:
            raise
        return wanted[0]


def pipeline_class(name: str) -> type | None:
    """The class of diffusers of that name, if there is one."""
    import diffusers

    try:
        cls = getattr(diffusers, name, None)
    except (ImportError, RuntimeError):  # it needs a package that is not there
        return None
    return cls if isinstance(cls, type) else None


def own_class(name: str) -> Any:
    """A class of that name that was defined outside of diffusers and has a record; None where there is none."""
    from diffusers import DiffusionPipeline

    waiting: list[type] = [DiffusionPipeline]
    while name in FAMILIES and waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if one.__name__ == name and not one.__module__.startswith("diffusers."):
            return one
    return None


def check_folder(folder: Path, allow_pickle: bool = False, doctored: bool = False) -> str:
    """The pipeline class of a model folder.

    Args:
        folder: the folder.
        allow_pickle: whether weights may be pickles.
        doctored: whether a pipeline will do that takes no prompts, or has no record.

    Raises:
        InputError: it is missing or incomplete, or holds pickles only.
        UnsupportedPipelineError: no family record for its class.
    """
    components = _index(folder)
    name = components["_class_name"]
    if not doctored:
        _check_class(folder, name)
    for part, kind in components.items():
        if part.startswith("_") or not is_component(kind):
            continue
        if not is_folder(folder / part):
            raise InputError(f"the model at {folder} is incomplete: no folder {part!r}")
        weights = not part.rstrip("_0123456789").endswith(("scheduler", "tokenizer", "feature_extractor"))
        if weights and not any((folder / part).glob("*.safetensors")):
            if any(file for pattern in PICKLES for file in (folder / part).glob(pattern)):
                if not allow_pickle:
                    raise InputError(
                        f"{folder / part} holds pickles only, which can run code when they are loaded; convert them to "
                        "safetensors, or pass --allow-pickle if you trust them"
                    )
            else:
                raise InputError(f"the model at {folder} is incomplete: no weights in {part!r}")
    return str(name)


def _check_class(folder: Path, name: str) -> None:
    if name not in FAMILIES:
        nearest = nearest_records(name, pipeline_class(name), components_of(folder))
        raise UnsupportedPipelineError(
            f"{folder} holds a {name}, for which there is no family record; {nearest[0]} and {nearest[1]} are nearest. "
            f"`guidestack doctor {folder}` says how to enter a copy with register_family, in Python"
        )
    if FAMILIES[name].encode is None:
        raise UnsupportedPipelineError(
            f"{folder} holds a {name}, which takes no prompts; guidestack.guide() guides it from Python"
        )


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that change with the model: every file's name and size, and the ends of its contents.

    A stack that is stored beside it is not the model.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.parent == folder / SUBFOLDER:
            continue
        if path.suffix in {".json", ".safetensors", ".txt", ".bin"} and path.is_file():
            digest.update(f"{path.relative_to(folder)}:{path.stat().st_size}".encode())
            digest.update(ends_of(path))
    return digest.hexdigest()[:16]


def ends_of(path: Path) -> bytes:
    """The first and the last 64 kiB of a file, which tell files of weights apart."""
    with path.open("rb") as file:
        first = file.read(1 << 16)
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        return first + file.read()


def folder_of(name: str | None) -> Path | None:
    """The folder that a model's name means, None the bundled one; None for the id of a model on the hub."""
    if name is None:
        return EMOJI
    return Path(name) if exists(name) or name.startswith((".", "/", "~")) or name.count("/") != 1 else None


def identity_of(name: str | None, allow_pickle: bool = False, doctored: bool = False) -> dict[str, str]:
    """What identifies a model: its name and, of a folder, its fingerprint. Nothing is loaded.

    Raises:
        InputError, UnsupportedPipelineError: as `check_folder`, of a folder.
    """
    identity = {"name": "bundled" if name is None else name}
    if (folder := folder_of(name)) is not None:
        check_folder(folder, allow_pickle, doctored)
        identity["fingerprint"] = fingerprint(folder)
    return identity


def load(
    name: str | None,
    dtype: Any,
    device: str,
    allow_pickle: bool = False,
    doctored: bool = False,
    offload: bool = False,
    fit: Callable[[Any], Any] = lambda pipe: pipe,
) -> tuple[Any, dict[str, str]]:
    """The pipeline, and what identifies the model, as `identity_of`.

    Args:
        name: a folder or a hub id; None for the bundled model.
        dtype: type of the weights.
        device: where to put it.
        allow_pickle: load weights that are not safetensors.
        doctored: also load a pipeline that takes no prompts, or has no record.
        offload: keep it in the host's memory, and each part on the device only while it is needed.
        fit: what is done to it before it goes to the device.

    Raises:
        InputError: the model cannot be loaded, or does not fit into the device's memory.
        UnsupportedPipelineError: no family record for it.
    """
    identity = identity_of(name, allow_pickle, doctored)
    quiet()
    from diffusers import DiffusionPipeline

    folder = folder_of(name)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": None if allow_pickle else True}
    asked = folder is None and reachable(str(name))
    advice = "the model does not fit; try --dtype float16, --offload where the command has it, or another --device"
    with memory(device, advice):
        try:
            cls = own_class(class_of(folder)) if folder is not None else None
            pipe = (cls or DiffusionPipeline).from_pretrained(folder or name, local_files_only=not asked, **options)
        except Exception as error:  # the libraries raise what a damaged file makes them run into
            if lacks_memory(error):
                raise
            reason = first_line(error) if folder else why(error, asked)
            raise InputError(f"cannot load the model {shown(str(folder or name))}: {reason}") from error
        pipe = fit(pipe)
        pipe.set_progress_bar_config(disable=True)
        if offload:
            pipe.enable_model_cpu_offload(device=device)
            return pipe, identity
        return pipe.to(device), identity


def loaded(cls: Any, place: str | Path, subfolder: str, what: str) -> nn.Module:
    """A network of a class, from a folder, or from a subfolder of a model on the hub; in float32 on the CPU.

    Raises:
        InputError: it cannot be loaded, or is of another class.
    """
    asked = False
    if isinstance(place, Path):
        try:
            found = json_of(read_bytes(place / "config.json", "network's configuration", LARGEST_INDEX))
            name = found["_class_name"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{what}: {str(place / 'config.json')!r} is no configuration of a network") from None
        if name != cls.__name__:
            raise InputError(
                f"{what} at {str(place)!r} is a {shown(name)}; for this model it has to be a {cls.__name__}"
            )
        if not any(place.glob("*.safetensors")):
            raise InputError(f"{what}: {str(place)!r} has no weights in safetensors, which alone are loaded")
    else:
        asked = reachable(place)
    try:
        network = cls.from_pretrained(str(place), subfolder=subfolder, use_safetensors=True, local_files_only=not asked)
    except Exception as error:  # the libraries raise what a damaged file makes them run into
        if lacks_memory(error):
            raise
        told = first_line(error) if isinstance(place, Path) else why(error, asked)
        raise InputError(f"cannot load {what} from {str(place)!r}: {told}") from error
    network.requires_grad_(False).eval()
    return network  # type: ignore[no-any-return]
