"""``guidestack doctor``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click
import torch

from ..guidance.errors import InputError, nearest, shown
from ..guidance.reading import is_folder
from ..pipelines import doctor
from ..pipelines.doctor import Diagnosis, unrecorded
from ..pipelines.families.record import FAMILIES
from ..pipelines.models.loading import chosen_device, class_of, components_of, first_line, load, pipeline_class, quiet
from ..pipelines.second import BUNDLED
from .as_json import echo_json, json_option
from .options import device_option, dtype_option, network_option, notices, rules_option, threads_option


@click.command()
@click.argument("model", required=False, metavar="[MODEL]")
@click.option(
    "--pipeline", metavar="CLASS", help="Test this pipeline on the model's components, e.g. one from pictures."
)
@click.option("--no-rules", is_flag=True, help="Make the checks only, without the table of rules.")
@network_option
@rules_option
@dtype_option
@device_option
@threads_option
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@json_option
def command(**options: Any) -> None:
    """Test that guidance works on MODEL, a folder or hub id; on the bundled model if none is given.

    The model makes two small samples in two steps, by itself and guided, over and over: is its own guidance the same to
    the bit, is every call of the network seen and counted, is the pipeline left as it was found, also by a call that
    fails? Then every rule is run, for a table of which run on it and why others do not.

    The exit status is 0 when everything holds and 1 when a check failed. A check that cannot be
    made here says why.
    """
    with notices():
        found = _diagnosed(options)
    if options["as_json"]:
        echo_json({**dataclasses.asdict(found), "ok": found.ok, "summary": found.summary})
    else:
        click.echo(found)
    sys.exit(0 if found.ok else 1)


def _diagnosed(options: dict[str, Any]) -> Diagnosis:
    device = chosen_device(options["device"])
    model = options["model"]
    if model is not None and is_folder(model) and (name := class_of(Path(model))) not in FAMILIES:
        quiet()  # the nearest records are found by the classes of all pipelines, whose modules talk when imported
        return unrecorded(
            name, pipeline_class(name), components_of(Path(model)), not options["no_rules"]
        )  # it may be one that cannot be loaded here
    pipe, _ = load(model, getattr(torch, options["dtype"]), device, options["allow_pickle"], doctored=True)
    networks = {**({"weak": BUNDLED} if model is None else {}), **options["networks"]}
    tested = _as(pipe, options["pipeline"]) if options["pipeline"] else pipe
    return doctor(tested, rules=not options["no_rules"], networks=networks)


def _as(pipe: Any, name: str) -> Any:
    """Another pipeline of the same components.

    Raises:
        InputError: there is none of that name, or it takes other components.
    """
    import diffusers

    cls: Any = pipeline_class(name)
    if cls is None or not issubclass(cls, diffusers.DiffusionPipeline):
        raise InputError(f"--pipeline {shown(name)} is no pipeline of diffusers{nearest(name, FAMILIES)}")
    try:
        return cls.from_pipe(pipe)
    except Exception as error:  # each pipeline misses its components in its own way
        raise InputError(f"--pipeline {name}: {first_line(error)}") from error
