"""The example of docs/devices.md runs, on a tiny pipeline and in float32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .pipelines.tiny import load

TEXT = (Path(__file__).parent.parent / "docs" / "devices.md").read_text(encoding="utf-8")


def test_its_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    load("StableDiffusionXLPipeline").make().save_pretrained(tmp_path)
    here = example.replace("torch.float16", "torch.float32").replace("num_inference_steps=30", "num_inference_steps=2")
    lines = [line for line in here.splitlines() if "enable_model_cpu_offload" not in line]  # it asks for a GPU
    assert len(lines) == len(here.splitlines()) - 1
    names: dict[str, Any] = {"MODEL": tmp_path}
    exec(compile("\n".join(lines), "docs/devices.md", "exec"), names)
    assert names["guided"].report.calls == 4
    assert min(names["image"].size) > 0
