"""DiT, class-conditional: one call with [conditional, unconditional], epsilon with learned variances.

Read in diffusers 0.42.1, ``pipelines/dit/pipeline_dit.py``. The pipeline hands the scheduler both halves of the batch
and keeps the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .record import Family, Pipeline, Rows, register_family


def _class(pipe: Pipeline, rows: Rows, generators: Sequence[torch.Generator]) -> Rows:
    # The embedding has one more entry, the null class, which stands last.
    labels = rows["class_labels"]
    classes = pipe.transformer.config.num_embeds_ada_norm
    drawn = torch.stack([torch.randint(classes, (), generator=one) for one in generators])
    return {"class_labels": drawn.to(labels.device, labels.dtype, non_blocking=True)}


def _cannot(pipe: Pipeline) -> str:
    # DiTPipeline.__call__ has the number written out.
    if (classes := pipe.transformer.config.num_embeds_ada_norm) != 1000:
        return f"it takes entry 1000 of the class embedding for the empty one, and this network's is {classes}"
    return ""


register_family(
    Family(
        pipeline="DiTPipeline",
        positional=("hidden_states",),
        rows=("timestep", "class_labels"),
        halves=("positive", "negative"),
        branches=lambda pipe, call: call["guidance_scale"] > 1,
        random={"class": _class},
        example=lambda pipe, batch: {"class_labels": list(range(1, batch + 1))},
        cannot=_cannot,
    )
)
