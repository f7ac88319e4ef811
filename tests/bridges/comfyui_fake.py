"""A small stand-in for the part of ComfyUI that the node pack meets, written from its documentation.

A model is a table of means: of data N(mean, 1) around what a condition says. `install` puts the modules in place.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class EPS:
    def noise_scaling(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise * sigma


class CONST:
    def noise_scaling(self, sigma: Tensor, noise: Tensor) -> Tensor:
        return noise * sigma


class Network(torch.nn.Module):
    """Clean samples of data around `mean`, bent so that predictions are not all of one line."""

    def __init__(self, flow: bool, wide: float) -> None:
        super().__init__()
        self.flow, self.wide = flow, wide

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        alpha = 1 - sigma if self.flow else torch.ones_like(sigma)
        mean = self.wide * context[:, :, None, None].expand_as(x) + 0.1 * torch.sin(x)
        return mean + alpha / (alpha**2 + sigma**2) * (x - alpha * mean)


class Model:
    def __init__(self, flow: bool, wide: float = 1.0) -> None:
        self.model_sampling = CONST() if flow else EPS()
        self.diffusion_model = Network(flow, wide)


class ModelPatcher:
    def __init__(self, model: Model) -> None:
        self.model, self.load_device = model, torch.device("cpu")
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}
        self.additional: dict[str, list[Any]] = {}
        self.began = self.ended = 0

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model)
        other.model_options = {key: copy.copy(value) for key, value in self.model_options.items()}
        other.wrappers = {kind: {key: [*some] for key, some in keys.items()} for kind, keys in self.wrappers.items()}
        return other

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def get_wrappers(self, kind: str, key: str) -> list[Any]:
        return self.wrappers.get(kind, {}).get(key, [])

    def set_additional_models(self, key: str, models: list[Any]) -> None:
        self.additional[key] = models

    def set_model_sampler_cfg_function(self, function: Any) -> None:
        self.model_options["sampler_cfg_function"] = function

    def set_model_sampler_pre_cfg_function(self, function: Any) -> None:
        self.model_options.setdefault("sampler_pre_cfg_function", []).append(function)

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.model_options.setdefault("sampler_post_cfg_function", []).append(function)

    def pre_run(self) -> None:
        self.began += 1

    def cleanup(self) -> None:
        self.ended += 1


class Cond:
    """What a condition tells the network; repeated to the batch."""

    def __init__(self, cond: Tensor) -> None:
        self.cond = cond

    def of(self, batch: int) -> Tensor:
        return self.cond[torch.arange(batch) % len(self.cond)]


def process_conds(model: Any, noise: Any, conds: Any, device: Any, *args: Any) -> Any:
    return {
        name: [{**one, "model_conds": {"c_crossattn": Cond(one["cross_attn"])}} for one in some]
        for name, some in conds.items()
    }


def calc_cond_batch(model: Any, conds: Any, x: Tensor, sigma: Tensor, options: Any) -> list[Tensor]:
    told = [one[0]["model_conds"]["c_crossattn"].of(len(x)) for one in conds]
    out = model.diffusion_model(torch.cat([x] * len(conds)), torch.cat([sigma] * len(conds)), torch.cat(told))
    return list(out.chunk(len(conds)))


def chained(wrappers: list[Any], original: Callable[..., Any]) -> Callable[..., Any]:
    for wrapper in reversed(wrappers):
        original = (lambda inner, outer: lambda *args, **kwargs: outer(inner, *args, **kwargs))(original, wrapper)
    return original


class CFGGuider:
    def __init__(self, model_patcher: ModelPatcher) -> None:
        self.model_patcher, self.model_options = model_patcher, model_patcher.model_options
        self.original_conds: dict[str, Any] = {}
        self.cfg = 1.0

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.inner_set_conds({"positive": positive, "negative": negative})

    def inner_set_conds(self, conds: dict[str, Any]) -> None:
        for name, some in conds.items():
            self.original_conds[name] = [{**more, "cross_attn": text, "model_conds": {}} for text, more in some]

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def _wrappers(self, kind: str) -> list[Any]:
        return [one for some in self.model_patcher.wrappers.get(kind, {}).values() for one in some]

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any, seed: Any = None) -> Tensor:
        return chained(self._wrappers("predict_noise"), self.predict_noise)(x, sigma, model_options, seed)

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any, seed: Any = None) -> Tensor:
        some = [self.conds["positive"], self.conds["negative"]]
        c, u = calc_cond_batch(self.inner_model, some, x, timestep, model_options)
        guided = u + (c - u) * self.cfg
        for listener in model_options.get("sampler_post_cfg_function", []):
            guided = listener({"denoised": guided, "uncond_denoised": u, "cond_denoised": c, "input": x})
        return guided

    def sample(
        self, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, disable_pbar: bool = True, seed: int = 0
    ) -> Tensor:
        self.inner_model = self.model_patcher.model
        self.conds = process_conds(self.inner_model, noise, self.original_conds, noise.device)
        extra = {"model_options": {**self.model_options}, "seed": seed}
        run = chained(self._wrappers("sampler_sample"), sampler.sample)
        return run(self, sigmas, extra, None, noise, latent, None, disable_pbar)


def euler(model: Any, x: Tensor, sigmas: Tensor, extra: Any) -> Tensor:
    for i in range(len(sigmas) - 1):
        clean = model(x, sigmas[i].expand(len(x)), **extra)
        x = clean + (x - clean) / sigmas[i] * sigmas[i + 1]
    return x


def heun(model: Any, x: Tensor, sigmas: Tensor, extra: Any) -> Tensor:
    for i in range(len(sigmas) - 1):
        d, step = (x - model(x, sigmas[i].expand(len(x)), **extra)) / sigmas[i], sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] > 0:
            there = x + d * step
            d = (d + (there - model(there, sigmas[i + 1].expand(len(x)), **extra)) / sigmas[i + 1]) / 2
        x = x + d * step
    return x


def euler_cfg_pp(model: Any, x: Tensor, sigmas: Tensor, extra: Any) -> Tensor:
    heard: dict[str, Tensor] = {}

    def listener(told: Any) -> Any:
        heard["u"] = told["uncond_denoised"]
        return told["denoised"]

    options = extra["model_options"]
    listeners = [*options.get("sampler_post_cfg_function", []), listener]
    extra = {**extra, "model_options": {**options, "sampler_post_cfg_function": listeners}}
    for i in range(len(sigmas) - 1):
        clean = model(x, sigmas[i].expand(len(x)), **extra)
        x = clean + (x - heard["u"]) / sigmas[i] * sigmas[i + 1]
    return x


SAMPLERS = {one.__name__: one for one in (euler, heun, euler_cfg_pp)}


class Sampler:
    def __init__(self, name: str) -> None:
        self.function = SAMPLERS[name]

    def sample(self, guider: Any, sigmas: Any, extra: Any, callback: Any, noise: Any, *rest: Any) -> Tensor:
        return self.function(guider, guider.inner_model.model_sampling.noise_scaling(sigmas[0], noise), sigmas, extra)


class ComfyNode:
    pass


class ComfyExtension:
    pass


def _socket(kind: str) -> Any:
    def made(name: str = "", **more: Any) -> Any:
        return SimpleNamespace(kind=kind, name=name, **more)

    return SimpleNamespace(Input=made, Output=made)


def _output(*result: Any, ui: Any = None) -> Any:
    return SimpleNamespace(result=result, ui=ui)


IO = SimpleNamespace(
    ComfyNode=ComfyNode, Schema=SimpleNamespace, Custom=_socket, String=_socket("STRING"), NodeOutput=_output
)


def install(put: Callable[[dict[str, Any], str, Any], None]) -> None:
    """Put the modules where `import` finds them, by ``put(sys.modules, name, module)``."""
    contents: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.samplers": {
            "CFGGuider": CFGGuider,
            "calc_cond_batch": calc_cond_batch,
            "process_conds": process_conds,
            "sampler_object": Sampler,
            "SAMPLER_NAMES": list(SAMPLERS),
        },
        "comfy.model_sampling": {"CONST": CONST, "EPS": EPS},
        "comfy_api": {},
        "comfy_api.latest": {"io": IO, "ComfyExtension": ComfyExtension},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        put(sys.modules, name, module)
        if "." in name:
            parent, _, own = name.rpartition(".")
            setattr(sys.modules[parent], own, module)
