"""Feature extractors: networks that turn images into vectors, by which sets of images are compared.

The text that names one, in a metric's parameter ``extractor``:

==========================  =========================================================================================
``efficientnet-lite0``      the default: trained on ImageNet, weights inside a package, works offline
``inception:FILE``          the Inception of the Fréchet inception distance, from a file of its weights
``dinov2:FOLDER``           a DINOv2 in the form of transformers, from a folder
``clip:FOLDER``             the image side of a CLIP in the form of transformers, from a folder
==========================  =========================================================================================

The full name, under which features are kept and numbers are reported, has the network, for a user's own files a digest
of them, and the size and filter of the resizing: ``efficientnet-lite0@128-bicubic-aa``. Numbers of different full names
are not comparable. Weights are read from safetensors, or without running what a pickle says (``weights_only=True``).
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..guidance.errors import GuidestackError, InputError, nearest, reason
from ..guidance.objectives import efficientnet
from ..guidance.reading import json_of, read_bytes
from ..pipelines.models.files import LARGEST_SIDE
from . import paths as places
from .values import file

if TYPE_CHECKING:
    from collections.abc import Iterator

Images = NDArray[np.uint8]
Features = NDArray[np.float32]

DEFAULT = "efficientnet-lite0"
BATCH = 32


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network that is ready: called with images, gives their features.

    Args:
        name: the full name.
        dimensions: D, of the features.
        network: from pixels in [0, 255], shape ``(B, 3, H, W)`` in float32, to features ``(B, D)``.
        maps_of: likewise to a list of feature maps ``(B, C, h, w)``, for distances by place; None if it has none.
        device: where it runs.
    """

    name: str
    dimensions: int
    network: Callable[[Tensor], Tensor]
    maps_of: Callable[[Tensor], list[Tensor]] | None = None
    device: str = "cpu"

    def __call__(self, images: Images, batch: int = BATCH) -> Features:
        """Features of images of one size, whatever it is.

        Args:
            images: shape ``(N, H, W, 3)``, sRGB.
            batch: images at a time; the result does not depend on it but for rounding.

        Returns:
            Shape ``(N, D)``.

        Raises:
            InputError: features that are not finite.
        """
        return self.of_pixels(torch.from_numpy(np.ascontiguousarray(images)), batch)

    @torch.no_grad()
    def of_pixels(self, pixels: Tensor, batch: int = BATCH) -> Features:
        """The features of values in [0, 255] of any type, shape ``(N, H, W, 3)``."""
        found = [self.network(self._prepared(part)).float().cpu() for part in torch.split(pixels, batch)]
        features = torch.cat(found) if found else torch.zeros(0, self.dimensions)
        if not torch.isfinite(features).all():
            raise InputError(f"{self.name} gave features that are not finite: its weights are damaged")
        return features.numpy()

    @torch.no_grad()
    def maps(self, images: Images, batch: int = BATCH) -> list[Features]:
        """Feature maps of images, by layer, shapes ``(N, C, h, w)``.

        Raises:
            InputError: the network has none that are known here.
        """
        if self.maps_of is None:
            raise InputError(f"{self.name} has no feature maps; use {DEFAULT}")
        parts = torch.split(torch.from_numpy(np.ascontiguousarray(images)), batch)
        found = [[one.float().cpu().numpy() for one in self.maps_of(self._prepared(part))] for part in parts]
        return [np.concatenate(layer) for layer in zip(*found, strict=True)]

    def _prepared(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device).permute(0, 3, 1, 2).float()


def full_name(text: str) -> str:
    """The full name of the extractor that `text` means; loads no network.

    Raises:
        InputError: an unknown extractor, or its files are not there.
    """
    kind, path = _split(text)
    if path is None:
        return f"{DEFAULT}@128-bicubic-aa"
    resizing = f"{_clip_side(path)}-bicubic-aa" if kind == "clip" else RESIZINGS[kind]
    return f"{kind}-{digest(path)}@{resizing}"


def load(text: str, device: str | None = None) -> Extractor:
    """The extractor that `text` means, loaded once for each device.

    Args:
        text: see the table above.
        device: where to run; by default the first GPU if there is one.

    Raises:
        InputError: an unknown extractor, a package or a file that is missing, or weights of something else.
    """
    return _load(text, full_name(text), device or _here())


def _here() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def dimensions(text: str) -> int:
    """D, the number of dimensions of an extractor's features.

    Raises:
        InputError: as `load`.
    """
    return load(text).dimensions


@functools.lru_cache(maxsize=4)
def _load(text: str, name: str, device: str) -> Extractor:
    kind, path = _split(text)
    if path is None:
        return _efficientnet(name, device)
    return {"inception": _inception, "dinov2": _dinov2, "clip": _clip}[kind](name, path, device)


def _split(text: str) -> tuple[str, Path | None]:
    kind, colon, path = text.partition(":")
    if not colon and kind.partition("@")[0] == DEFAULT and kind in (DEFAULT, f"{DEFAULT}@128-bicubic-aa"):
        return kind, None
    if kind not in RESIZINGS:
        raise InputError(f"unknown extractor {text!r}{nearest(kind, [DEFAULT, *RESIZINGS])}")
    if not path:
        raise InputError(
            f"the extractor {kind} needs your own files: {kind}:{'FILE' if kind == 'inception' else 'FOLDER'}"
        )
    return kind, Path(file(path, f"the extractor {kind}")).expanduser()


def located(text: str, folder: Path | None = None) -> str:
    """The text of an extractor with the absolute path of the user's own files."""
    kind, _, path = text.partition(":")
    return f"{kind}:{places.located(path, folder)}" if kind in RESIZINGS and path else text


RESIZINGS = {"inception": "299-bilinear-tf1", "dinov2": "224-bicubic-aa", "clip": "224-bicubic-aa"}


def _clip_side(path: Path) -> int:
    """Pixels of the images that a CLIP was trained on."""
    try:
        side = int(
            json_of(read_bytes(path / "config.json", "configuration", places.MAX_BYTES))["vision_config"]["image_size"]
        )
        return side if 0 < side <= LARGEST_SIDE else 224
    except (GuidestackError, ValueError, KeyError, TypeError, OverflowError):
        return 224  # what transformers takes where nothing is said; loading finds whatever else is wrong


@functools.cache
def _digest(path: Path, changed: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.blake2b(digest_size=4)
    for name, _, _ in changed:
        total.update(Path(name).name.encode())
        with Path(name).open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def digest(path: Path) -> str:
    """A short digest of a file, or of the weights and configurations of a folder.

    Raises:
        InputError: it is not there, or has none.
    """
    if path.is_dir():
        files = sorted([*path.glob("*.safetensors"), *path.glob("*.json")])
    else:
        files = [path]
    if not files or not all(one.is_file() for one in files):
        raise InputError(f"no weights at {path}: give a file, or a folder with config.json and *.safetensors")
    told = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    return _digest(path, tuple(told))


def resized(pixels: Tensor, size: int) -> Tensor:
    """Pixels ``(B, 3, H, W)`` at `size` squared: bicubic with antialiasing, as Pillow's, without rounding to bytes."""
    return torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)


def _efficientnet(name: str, device: str) -> Extractor:
    """EfficientNet-Lite0: 1,280 averages over the places of its last layer, at 128 pixels."""
    net: Any = efficientnet.network(device)

    def prepared(pixels: Tensor) -> Tensor:
        return (resized(pixels, 128) - 127) / 128  # as the network was trained

    def features(pixels: Tensor) -> Tensor:
        maps: Tensor = net.extract_features(prepared(pixels))
        return maps.mean((2, 3))

    def maps(pixels: Tensor) -> list[Tensor]:
        # The last layers at strides 2, 4, 8, 16 and 32, as LPIPS takes five of its networks.
        wanted, found = (0, 2, 4, 10, 15), []
        inner = net._swish(net._bn0(net._conv_stem(prepared(pixels))))
        for index, block in enumerate(net._blocks):
            inner = block(inner)
            if index in wanted:
                found.append(inner)
        return found

    return Extractor(name, 1280, features, maps, device)


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights.

    Raises:
        InputError: it cannot be read, or would run code.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded: dict[str, Tensor] = load_file(path)
            return loaded
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"cannot read the weights {path}: {reason(error)}") from error
    except Exception as error:  # an unpickler's refusal has a class of its own in every version
        raise InputError(f"{path} has more than weights; convert it to safetensors ({reason(error)})") from error
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise InputError(f"{path} has no plain table of tensors; convert it to safetensors")
    return found


def _inception(name: str, path: Path, device: str) -> Extractor:
    """Inception of 2015-12-05 as the original distance has it: 2,048 averages, at 299 pixels."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise InputError("the extractor inception needs torch-fidelity: pip install torch-fidelity") from None
    weights = _tensors(path)
    with tempfile.TemporaryDirectory() as folder:  # the class reads a file, and without a look at what is in it
        checked = Path(folder) / "weights.pth"
        torch.save(weights, checked)
        try:
            net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(checked))
        except RuntimeError as error:
            raise InputError(f"{path} is not the Inception of torch-fidelity: {reason(error)}") from error
    net = net.to(device)

    def features(pixels: Tensor) -> Tensor:
        found: Tensor = net(pixels.round().clamp(0, 255).to(torch.uint8))[0]
        return found

    return Extractor(name, 2048, features, device=device)


@contextmanager
def _own_files(kind: str, path: Path) -> Iterator[None]:
    """Say in one line what is wrong with a user's folder."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers raises whatever its parts raise
        raise InputError(f"{path} is no {kind} that transformers can load: {reason(error)}") from error


def _loaded(kind: str, cls: Any, path: Path, device: str) -> Any:
    """A network of transformers from a folder, every weight of which is there."""
    with _own_files(kind, path):
        net, told = cls.from_pretrained(path, local_files_only=True, use_safetensors=True, output_loading_info=True)
        if told["missing_keys"]:
            raise InputError(f"{path} is no {kind}: it lacks {sorted(told['missing_keys'])[0]}")
        return net.eval().requires_grad_(False).float().to(device)


def _normalized(pixels: Tensor, size: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    means, deviations = (torch.tensor(one, device=pixels.device).view(3, 1, 1) for one in (mean, deviation))
    return (resized(pixels, size) / 255 - means) / deviations


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def _dinov2(name: str, path: Path, device: str) -> Extractor:
    """DINOv2: the class token after the last norm, at 224 pixels."""
    from transformers import Dinov2Model

    net = _loaded("DINOv2", Dinov2Model, path, device)

    def features(pixels: Tensor) -> Tensor:
        found: Tensor = net(_normalized(pixels, 224, *IMAGENET)).last_hidden_state[:, 0]
        return found

    return Extractor(name, net.config.hidden_size, features, device=device)


def _clip(name: str, path: Path, device: str) -> Extractor:
    """CLIP: the projected embedding of an image, at the size that it was trained on."""
    net, _ = _whole_clip(path, digest(path), device)
    side = _clip_side(path)

    def features(pixels: Tensor) -> Tensor:
        pooled = net.vision_model(pixel_values=_normalized(pixels, side, *CLIP)).pooler_output
        found: Tensor = net.visual_projection(pooled)
        return found

    return Extractor(name, net.config.projection_dim, features, device=device)


@torch.no_grad()
def clip_texts(path: Path, texts: list[str]) -> Tensor:
    """The projected embeddings of texts by the CLIP in a folder, shape ``(N, D)``; texts too long are cut off.

    Raises:
        InputError: the folder is none of a CLIP with its tokenizer.
    """
    net, tokenizer = _whole_clip(path, digest(path), _here())
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(net.device)
    found: Tensor = net.text_projection(net.text_model(**tokens).pooler_output)
    return found.float().cpu()


@functools.lru_cache(maxsize=1)
def _whole_clip(path: Path, name: str, device: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    net = _loaded("CLIP", CLIPModel, path, device)
    with _own_files("CLIP", path):
        return net, CLIPTokenizer.from_pretrained(path, local_files_only=True)
