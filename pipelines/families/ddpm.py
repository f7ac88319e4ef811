"""Unconditional UNets in pixel space: one call, no condition at all.

Read in diffusers 0.42.1, ``pipelines/ddpm/pipeline_ddpm.py`` and ``pipelines/ddim/pipeline_ddim.py``.
"""

from __future__ import annotations

from .record import Family, register_family

for name in ("DDPMPipeline", "DDIMPipeline"):
    register_family(
        Family(
            pipeline=name,
            denoiser="unet",
            positional=("sample", "timestep"),
            sample="sample",
            rows=(),
            guided={},
            unguided={},
            owned={},
            branches=lambda pipe, call: False,
            cannot=lambda pipe: "it is unconditional; tsg(scale) or pag(scale) guides such a model",
            halves=("positive",),
            example=lambda pipe, batch: {"batch_size": batch},
        )
    )
