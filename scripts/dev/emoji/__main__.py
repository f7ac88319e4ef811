"""``python -m guidestack.scripts.dev.emoji STEP``: see the package's docstring."""

from __future__ import annotations

from pathlib import Path

import click

WORK = Path("~/.cache/guidestack/emoji").expanduser()
INIT = click.option(
    "--init", type=click.Path(exists=True, path_type=Path), help="Pipeline folder to start from, as `denoiser` had it."
)
FLOW = click.option("--flow", is_flag=True, help="The flow twin: the velocity of the straight path; use with --init.")
PIPELINE = click.argument("folder", type=click.Path(exists=True, path_type=Path))
SCALE = click.option("--scale", type=float, default=4.0, show_default=True, help="Guidance; 1 is none.")
STEPS = click.option("--steps", type=int, default=25, show_default=True, help="Of second-order DPM++.")
TO = click.Path(path_type=Path)


@click.group(help="Make the bundled emoji model: harvest, tokenizer, autoencoder, latents, denoiser, export, measure.")
@click.option("--work", type=click.Path(path_type=Path), default=WORK, show_default=True, help="Folder of all state.")
@click.option("--threads", type=int, default=2, show_default=True, help="Threads of the tensor library.")
@click.pass_context
def main(context: click.Context, work: Path, threads: int) -> None:
    """Entry of the group."""
    import torch

    torch.set_num_threads(threads)
    context.obj = work


@main.command()
@click.pass_obj
def harvest(work: Path) -> None:
    """Draw the pictures from npm packages (needs npm and the extra `emoji`)."""
    from .harvest import harvest as run

    click.echo(f"{run(work)} pictures in {work / 'pictures.safetensors'}")


@main.command()
@click.pass_obj
def tokenizer(work: Path) -> None:
    """Train the tokenizer on the captions' words."""
    from .tokenizer import tokenizer as run

    click.echo(f"{run(work)} tokens in {work / 'tokenizer'}")


@main.command()
@click.option("--steps", type=int, default=3500, show_default=True, help="Steps in all; may change on a resume.")
@click.option("--decay-from", type=int, default=500, show_default=True, help="Step from which the rate falls to 0.")
@click.option("--batch", type=int, default=24, show_default=True)
@click.option("--rate", type=float, default=1.5e-3, show_default=True, help="Learning rate.")
@click.pass_obj
def autoencoder(work: Path, steps: int, decay_from: int, batch: int, rate: float) -> None:
    """Train the autoencoder; run it again to continue after a stop, kill -9 included."""
    from .autoencoder import autoencoder as run

    decibels = run(work, steps, decay_from, batch, rate)
    click.echo("stopped; run it again to continue" if decibels is None else f"{decibels:.1f} dB in {work / 'vae'}")


@main.command()
@click.pass_obj
def latents(work: Path) -> None:
    """Encode the pictures on every background."""
    from .latents import latents as run

    click.echo(f"{run(work)} pictures as latents in {work / 'latents.safetensors'}")


@main.command()
@click.option("--steps", type=int, default=40_000, show_default=True, help="Steps in all; may change on a resume.")
@click.option("--decay-from", type=int, default=20_000, show_default=True, help="Step from which the rate falls to 0.")
@click.option("--warmup", type=int, default=200, show_default=True)
@click.option("--batch", type=int, default=16, show_default=True)
@click.option("--rate", type=float, default=6e-4, show_default=True, help="Learning rate.")
@click.option("--save-every", type=float, default=300, show_default=True, help="Seconds between checkpoints.")
@click.option(
    "--focus",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of each batch at the noise levels that decide the details.",
)
@INIT
@FLOW
@click.pass_obj
def denoiser(
    work: Path,
    steps: int,
    decay_from: int,
    warmup: int,
    batch: int,
    rate: float,
    save_every: float,
    focus: float,
    init: Path | None,
    flow: bool,
) -> None:
    """Train the denoiser; run it again to continue after a stop, kill -9 included."""
    from .denoiser import denoiser as run

    done = run(work, steps, decay_from, init, warmup, batch, rate, save_every, focus, flow)
    click.echo("done" if done else "stopped; run it again to continue")


@main.command()
@INIT
@FLOW
@click.option("--to", type=TO, required=True, help="Folder to write; replaced as a whole.")
@click.pass_obj
def export(work: Path, init: Path | None, flow: bool, to: Path) -> None:
    """Write the checkpoint's averaged weights as a pipeline folder in half precision."""
    from .export import export as run

    click.echo(f"step {run(work, init, to, flow)} in {to}")


@main.command()
@PIPELINE
@click.option(
    "--other",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Pipeline folder of the twin: an earlier checkpoint, or the flow twin.",
)
@click.option("--numbers", type=int, default=400_000, show_default=True, help="Numbers of the file, of 8 bits each.")
@click.option("--whole", is_flag=True, help="Change all weights; by default only those at 8x8.")
@click.option("--to", type=TO, required=True, help="File to write: pipelines/emoji-weak.safetensors, or emoji-flow.")
def twin(folder: Path, other: Path, numbers: int, whole: bool, to: Path) -> None:
    """Write a twin of the denoiser in FOLDER: its difference from another one, in at most NUMBERS numbers."""
    from safetensors.torch import load_file

    from .twin import SMALL, write_twin

    weights = [load_file(one / "unet" / "diffusion_pytorch_model.safetensors") for one in (folder, other)]
    done = write_twin(weights[0], weights[1], to, numbers, ("",) if whole else SMALL)
    click.echo(f"{to}: {done.size} bytes, {done.explained:.0%} of a squared difference of {done.away:.2f} of the norm")


@main.command()
@PIPELINE
@click.option("--count", type=int, default=500, show_default=True, help="Prompts.")
@click.option("--seed", type=int, default=7, show_default=True, help="Of the prompts and the noise.")
@SCALE
@STEPS
@click.option("--background", multiple=True, help="Ask for this colour only; may be repeated. Default: all twelve.")
@click.option("--features/--no-features", default=False, show_default=True, help="By a pretrained network, too.")
@click.option("--to", type=TO, help="JSON to write. Default: measured.json in the work folder.")
@click.pass_obj
def measure(
    work: Path,
    folder: Path,
    count: int,
    seed: int,
    scale: float,
    steps: int,
    background: tuple[str, ...],
    features: bool,
    to: Path | None,
) -> None:
    """Measure a pipeline FOLDER: background, concept and style of pictures that are asked for."""
    from .measure import measure as run
    from .measure import table

    figures = run(work, folder, count, seed, scale, steps, background, features, to or work / "measured.json")
    click.echo(table(figures))


@main.command()
@click.pass_obj
def references(work: Path) -> None:
    """Write the pictures of the concepts into the package: what metrics compare with."""
    from .references import references as run

    click.echo(run(work))


@main.command()
@PIPELINE
@click.option("--steps", type=int, default=1600, show_default=True, help="Steps in all; may change on a resume.")
@click.option("--decay-from", type=int, default=900, show_default=True, help="Step from which the rate falls to 0.")
@click.option("--batch", type=int, default=64, show_default=True)
@click.option("--rate", type=float, default=3e-3, show_default=True, help="Learning rate.")
@click.option("--to", type=TO, required=True, help="File to write: guidance/objectives/emoji.safetensors.")
@click.pass_obj
def classifier(work: Path, folder: Path, steps: int, decay_from: int, batch: int, rate: float, to: Path) -> None:
    """Train the classifier of the objective `emoji` on pictures as the pipeline FOLDER makes them; resumable."""
    from .classifier import classifier as run

    click.echo(
        str(to) if run(work, folder, steps, decay_from, batch, rate, to) else "stopped; run it again to continue"
    )


@main.command()
@PIPELINE
@click.option(
    "--weights", type=click.Path(exists=True, path_type=Path), required=True, help="File that `classifier` wrote."
)
@click.option("--count", type=int, default=200, show_default=True, help="Generated pictures.")
@click.option("--seed", type=int, default=7, show_default=True, help="Of their prompts and noise.")
@click.pass_obj
def classified(work: Path, folder: Path, weights: Path, count: int, seed: int) -> None:
    """Measure the classifier on held-out pictures and on those of the pipeline FOLDER."""
    from .classifier import measure as run

    for name, figures in run(work, folder, weights, count, seed).items():
        click.echo(f"{name:36}" + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))


@main.command()
@click.option("--count", type=click.IntRange(1), default=200, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def prompts(count: int, seed: int) -> None:
    """Print prompts drawn at random over all concepts, styles and backgrounds, one a line."""
    from .harvested import random_prompts

    click.echo("\n".join(random_prompts(count, seed)))


@main.command()
@PIPELINE
def card(folder: Path) -> None:
    """Write the model card of a pipeline FOLDER from its measured.json."""
    from .card import card as run

    run(folder)


@main.command()
@PIPELINE
@click.option("--count", type=int, default=24, show_default=True, help="Pictures.")
@click.option("--seed", type=int, default=24, show_default=True, help="Of the prompts and the noise.")
@SCALE
@STEPS
@click.option("--to", type=TO, required=True, help="PNG to write.")
@click.pass_obj
def samples(work: Path, folder: Path, count: int, seed: int, scale: float, steps: int, to: Path) -> None:
    """Draw a grid of pictures with the pipeline FOLDER and list their prompts."""
    from .samples import samples as run

    click.echo("\n".join(run(work, folder, count, seed, scale, steps, to)))


if __name__ == "__main__":
    main()
