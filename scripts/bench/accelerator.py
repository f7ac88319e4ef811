"""Functions that differ between accelerators: their name, queue of work, memory, and waits of the host."""

from __future__ import annotations

import gc
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import memory


def describe(device: torch.device) -> dict[str, str]:
    """The device with its driver and memory, in words."""
    if device.type == "cuda":
        found, cudnn = torch.cuda.get_device_properties(device), torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return {
            "device": f"{found.name}, {found.total_memory / 2**30:.0f} GiB, capability {found.major}.{found.minor}",
            "driver": _driver() or "unknown: no nvidia-smi",
            "cuda": f"{torch.version.cuda or torch.version.hip}, cuDNN {cudnn}",
        }
    return {"device": device.type, "driver": "none of its own", "cuda": "none"}


def _driver() -> str:
    if not (tool := shutil.which("nvidia-smi")):
        return ""
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return " ".join(dict.fromkeys(done.stdout.split()))


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a CPU has, always."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds, by a clock that waits for the device first."""

    def now() -> float:
        finish(device)
        return time.perf_counter()

    return now


def free(device: torch.device) -> int | None:
    """Return the free bytes of the device's memory; None if the device does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def release(device: torch.device) -> None:
    """Free the memory of pipelines that are no longer referenced, which only the garbage collector finds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def peak(device: torch.device, run: Callable[[], Any]) -> int | None:
    """The most bytes that `run` allocated at once, beyond what was there before; None where that is not counted."""
    if device.type == "cpu":
        return memory.peak(run)
    if device.type != "cuda":
        return None
    finish(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    finish(device)
    return torch.cuda.max_memory_allocated(device) - before


WAIT = "called a synchronizing CUDA operation"
"""What torch warns of, each time, in its debug mode."""


def waits(device: torch.device, run: Callable[[], Any]) -> int | None:
    """How often `run` makes the host wait for the device; None where torch does not tell, which is all but CUDA."""
    if device.type != "cuda":
        return None
    finish(device)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum(WAIT in str(one.message) for one in seen)


@contextmanager
def exact() -> Iterator[None]:
    """While the context lasts, float32 is not TF32, and cuDNN takes algorithms that give the same bits again."""
    settings: tuple[tuple[Any, str, bool], ...] = (
        (torch.backends.cudnn, "allow_tf32", False),
        (torch.backends.cudnn, "deterministic", True),
        (torch.backends.cuda.matmul, "allow_tf32", False),
    )
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
