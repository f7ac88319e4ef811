"""Objectives through the command line: their pictures, images that are made again, plans, sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guidestack.evaluation import load_sweep, run
from guidestack.evaluation.spec.cells import Addresses, expand
from guidestack.guidance.errors import InputError
from guidestack.pipelines.models.files import opened, read_recipe

STEERED = "tfg('known', mu=0.3)"


def picture(path: Path, red: int = 200) -> Path:
    numbers = np.zeros((16, 16, 4), np.uint8)
    numbers[:8] = (red, 40, 40, 255)  # the lower half is not known
    Image.fromarray(numbers).save(path)
    return path


def options(model_folder: Path, out: Path, *more: object) -> list[object]:
    return ["generate", "a cat", "--model", model_folder, "--out", out, "--steps", 2, "--sampler", "ddim", *more]


def test_generate_and_make_again(command: Any, model_folder: Path, tmp_path: Path) -> None:
    known, other = picture(tmp_path / "known.png"), picture(tmp_path / "other.png", 10)
    guidance = ("--guidance", STEERED, "--guidance", "stack()")
    status, _, err = command(*options(model_folder, tmp_path / "a", *guidance, "--objective", f"known={known}"))
    assert status == 0, err
    made = {read_recipe(path)["guidance"]: (path, read_recipe(path)) for path in (tmp_path / "a").glob("*.png")}
    path, recipe = made[STEERED]
    assert set(recipe["pictures"]) == {"objective known"}
    assert "pictures" not in made["stack()"][1]
    steered, plain = (np.asarray(opened(made[text][0]), dtype=float) for text in (STEERED, "stack()"))
    wanted = np.array([200, 40, 40])
    assert np.abs(steered[:8] - wanted).mean() < np.abs(plain[:8] - wanted).mean()

    again = ("generate", "--like", path, "--model", model_folder, "--out", tmp_path / "b")
    status, _, err = command(*again)
    assert status == 2
    assert "the image was steered to a picture; give it again with --objective known=FILE" in err
    status, _, err = command(*again, "--objective", f"known={known}")
    assert status == 0, err
    assert np.array_equal(np.asarray(opened(next((tmp_path / "b").glob("*.png")))), np.asarray(opened(path)))
    status, _, err = command(*again[:-1], tmp_path / "c", "--objective", f"known={other}")
    assert status == 0
    assert "is another picture than the image was made from" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "the objective 'known' takes a picture: --objective known=FILE"),
        (("--objective", "known"), "--objective is NAME=FILE"),
        (("--objective", "known(spread=2)=a.png"), "; leave the brackets out: known=a.png"),
        (("--objective", "known=none.png"), "cannot read the image 'none.png'"),
        (("--objective", "known=a.png", "--objective", "known=b.png"), "--objective known comes twice"),
    ],
)
def test_what_is_wrong_is_one_line(
    command: Any, model_folder: Path, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    status, _, err = command(*options(model_folder, tmp_path / "a", "--guidance", STEERED, *given))
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_picture_of_another_size_is_refused_before_anything_is_made(
    command: Any, model_folder: Path, tmp_path: Path
) -> None:
    given = ("--guidance", "stack()", "--guidance", STEERED, "--objective", f"known={picture(tmp_path / 'known.png')}")
    status, _, err = command(*options(model_folder, tmp_path / "a", *given, "--size", "24x16"))
    assert (status, err.strip().splitlines()[-1]) == (
        2,
        "guidestack: the picture of the objective 'known' is for 16x16 pixels, and the run makes 24x16 (height x "
        "width); give one that fits, or make pictures of that size",
    )
    assert not (tmp_path / "a").exists()


def test_a_picture_that_no_rule_asks_is_warned_of(command: Any, model_folder: Path, tmp_path: Path) -> None:
    given = ("--guidance", "stack()", "--objective", f"known={picture(tmp_path / 'known.png')}")
    status, _, err = command(*options(model_folder, tmp_path / "a", *given))
    assert status == 0
    assert "--objective known was given, and no rule steers by it" in err


def test_a_rule_without_weights_and_a_picture_without_transparency_are_noted(
    command: Any, model_folder: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "known.jpg")
    given = (
        "--guidance",
        "cfg(4) | during(tfg('known'), progress=(0, 1))",
        "--objective",
        f"known={tmp_path}/known.jpg",
    )
    status, _, err = command(*options(model_folder, tmp_path / "a", *given))
    assert status == 0, err
    assert err.count("the picture of the objective 'known' is opaque all over") == 1
    assert err.count("warning: TFG does nothing: give it rho or mu") == 1
    assert "note: TFG does nothing: give it rho or mu" in command("explain", given[1])[1]
    assert "does nothing" not in command("explain", STEERED)[1]


def test_explain_names_backward_passes_and_what_the_objective_takes(command: Any) -> None:
    status, out, _ = command("explain", "cfg(4) | during(tfg('known', rho=1), progress=(0, 0.5))", "--steps", 4)
    assert status == 0
    assert out.count("negative+grad, positive+grad") == 2
    assert "it steers by the objective 'known', which takes a picture, --objective known=FILE" in out
    assert "each of its evaluations has a backward pass" in out


def test_a_sweep_has_pictures_and_its_addresses_know_them(model_folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "known.png")
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"model: {model_folder}\nobjectives: {{known: known.png}}\nprompts: [a cat]\nseeds: {{count: 1}}\n"
        "stack: [stack(), \"tfg('known', mu=0.3)\"]\nsteps: 2\nsampler: ddim\nmetrics: []\n"
    )
    sweep = load_sweep(file)
    assert sweep.objectives == {"known": str((tmp_path / "known.png").resolve())}
    outcome = run(sweep, tmp_path / "run")
    del outcome
    picture(tmp_path / "known.png", 10)
    with pytest.raises(InputError, match="the fingerprint of the objective known is"):
        run(load_sweep(file), tmp_path / "run")
    plain, steered = expand(sweep)
    one, two = (Addresses("m", {"objective known": digest}) for digest in ("1", "2"))
    assert one.cell(plain) == two.cell(plain) == Addresses("m").cell(plain)
    assert one.cell(steered) != two.cell(steered)
