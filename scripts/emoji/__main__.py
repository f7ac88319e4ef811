"""``python -m guidestack.scripts.emoji STEP``: see the package's docstring."""

from __future__ import annotations

from pathlib import Path

import click

WORK = Path("~/.cache/guidestack/emoji").expanduser()


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
@click.option("--init", type=click.Path(exists=True, path_type=Path), help="Pipeline folder to start from.")
@click.pass_obj
def denoiser(
    work: Path, steps: int, decay_from: int, warmup: int, batch: int, rate: float, init: Path | None
) -> None:
    """Train the denoiser; the same command goes on after a stop, kill -9 included."""
    from .denoiser import denoiser as run

    done = run(work, steps, decay_from, init, warmup, batch, rate)
    click.echo("done" if done else "stopped; the same command goes on")


if __name__ == "__main__":
    main()
