"""The record for a pipeline at hand, and the components that it names."""

from __future__ import annotations

import inspect

import torch

from ...guidance.errors import InputError, UnsupportedPipelineError, shown
from .forwarding import call_of, forwards
from .record import FAMILIES, OWN, Family, Pipeline
from .suggest import nearest_to


def known_class(pipe: Pipeline) -> type | None:
    """The nearest class of `pipe`, from its own upwards, that has a record; None where none has.

    A class of somebody else that has the name of one of diffusers may have another loop: the record is not its own.
    """
    known = (cls for cls in type(pipe).__mro__ if cls.__name__ in FAMILIES)
    return next((cls for cls in known if cls.__name__ not in OWN or cls.__module__.startswith("diffusers.")), None)


def family_of(pipe: Pipeline) -> Family:
    """The record for `pipe`, or for the class whose ``__call__`` it inherits, or hands its own calls on to.

    Raises:
        InputError: `pipe` is no pipeline.
        UnsupportedPipelineError: there is no record.
    """
    name, known = type(pipe).__name__, known_class(pipe)
    if known is not None and forwards(type(pipe), known):
        return FAMILIES[known.__name__]
    if known is not None:
        raise UnsupportedPipelineError(
            f"guidestack has no family record for {name}, whose __call__ does more than hand its arguments on to that "
            f"of {known.__name__}: what is known of one need not be true of the other. Guide "
            f"{known.__name__}(**pipe.components), or let guidestack.doctor(pipe) say how to enter a record for {name}"
        )
    if not callable(pipe) or isinstance(pipe, type | torch.nn.Module):
        raise InputError(
            "guide takes a pipeline object of diffusers, such as DiffusionPipeline.from_pretrained(MODEL) makes; got "
            f"{' '.join(shown(pipe).split())}"
        )
    if name in OWN:
        raise UnsupportedPipelineError(
            f"{type(pipe).__module__}.{name} is not diffusers' {name}, whose family record is not for it; give "
            "the class another name, and let guidestack.doctor(pipe) say how to enter a record for it"
        )
    raise UnsupportedPipelineError(
        f"guidestack has no family record for {name}; {' and '.join(nearest_to(pipe)[:2])} are nearest. "
        "guidestack.doctor(pipe) says how to enter a copy with register_family, docs/families.md how to write one"
    )


def hands_on(pipe: Pipeline) -> bool:
    """Whether the class of `pipe`, which has a record, hands its calls on to that of the class above by itself."""
    known = known_class(pipe)
    return known is not None and call_of(type(pipe)) is not call_of(known)


def signature_of(pipe: Pipeline) -> inspect.Signature:
    """The signature of a call of `pipe`; of a class that hands its calls on, that of the class above."""
    known = known_class(pipe)
    if known is None or not forwards(type(pipe), known):
        return inspect.signature(pipe.__call__)
    return inspect.signature(call_of(known).__get__(pipe))


def denoisers_of(pipe: Pipeline, family: Family) -> list[torch.nn.Module]:
    """The components of `pipe` that predict: the denoiser of its record, and others that are there.

    Raises:
        UnsupportedPipelineError: there is none, or it is no `torch.nn.Module`.
    """
    names = (family.denoiser, *family.others)
    found = {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}
    if not found:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has no component {' or '.join(names)}, which predicts in its family; load it first"
        )
    for name, component in found.items():
        if not isinstance(component, torch.nn.Module):
            raise UnsupportedPipelineError(
                f"{name} of {type(pipe).__name__} is {type(component).__name__}, which is no torch.nn.Module; put the "
                "module itself there"
            )
    return list(found.values())
