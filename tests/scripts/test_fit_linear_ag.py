"""``guidestack fit-linear-ag`` as a user meets it: its files, its report, being stopped and going on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from guidestack.guidance.errors import NonFiniteError
from guidestack.guidance.rules.linear_ag import fit as linear
from guidestack.samplers import grid, scheduler_identity
from guidestack.scripts import fit_linear_ag


@pytest.fixture
def run(command: Any) -> Any:
    """``run(*arguments) -> (exit status, stdout, stderr)``, in this process: loading torch anew takes seconds."""
    return command


@pytest.fixture
def fit(run: Any, model_folder: Path, tmp_path: Path) -> Any:
    """``fit(out, *options)``: six runs of four steps on the tiny model, from three prompts."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\nred\nsea\n")

    def call(out: Path, *options: object) -> tuple[int, str, str]:
        given = ["--prompts", prompts, "--model", model_folder, "--guidance", "cfg(3)", "--sampler", "ddim"]
        given += ["--steps", 4, "--trajectories", 6, "--batch", 2, "--out", out, *options]
        return run("fit-linear-ag", *given)  # type: ignore[no-any-return]

    return call


def grid_of(scheduler: Any) -> Any:
    scheduler.set_timesteps(4)
    return grid(scheduler)


def failing(after: int, error: BaseException) -> Any:
    """A stand-in for the guided call that works `after` times."""
    original, calls = fit_linear_ag._histories, [0]

    def histories(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise error
        return original(*arguments)

    return histories


def test_a_fit_and_its_use(fit: Any, run: Any, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "tiny.safetensors"
    status, said, err = fit(out)
    assert status == 0, err
    assert [path.name for path in out.parent.iterdir()] == ["tiny.safetensors"]
    assert f"{out}: 6 runs of 4 steps, 256 elements each" in said
    assert "6 evaluations a sample instead of 8" not in said  # 4 steps: g e c c
    assert f"linear_ag(cfg(3), '{out}'): 5 evaluations a sample instead of 8" in said
    rows = [line.split() for line in said.splitlines() if line.strip()[:1] in set("0123")]
    assert [row[-1] for row in rows] == ["guided", "estimated", "conditional", "conditional"]
    assert all(0 < float(row[1].rstrip("%")) < 100 for row in rows)
    with safetensors.safe_open(out, framework="pt") as file:
        header = json.loads(file.metadata()["linear_ag"])
        assert file.get_tensor("coefficients").shape == (4, 8)
    assert (header["rule"], header["steps"], header["space"], header["trajectories"]) == ("cfg(3)", 4, "noise", 6)
    assert header["valid"]["negative"] == "empty"
    assert header["made"] | {"prompts": ""} == {"prompts": "", "seed": "0", "sampler": "ddim", "dtype": "float32"}

    stack = f"linear_ag(cfg(3), '{out}')"
    use = ["generate", "a cat", "red", "--model", model_folder, "--sampler", "ddim", "--batch", 2, "--out", tmp_path]
    status, said, err = run(*use, "--steps", 4, "--guidance", stack)
    assert status == 0, err
    assert "10 network evaluations" in said
    for options, message in (
        (["--steps", 5, "--guidance", stack], "fitted for the steps '4' and this run has '5'"),
        (
            ["--steps", 4, "--guidance", stack.replace("cfg(3)", "cfg(4)")],
            "the rule 'cfg(3)' and this run has 'cfg(4)'",
        ),
        (["--steps", 4, "--guidance", stack, "--negative", "dog"], "the negative prompt 'empty'"),
        (["--steps", 4, "--guidance", stack, "--sampler", "euler"], "the scheduler 'DDIMScheduler:"),
        (["--steps", 4, "--guidance", stack, "--sampler", "heun"], "the scheduler 'DDIMScheduler:"),
    ):
        status, said, err = run(*use, *options)
        assert status == 2
        last = err.strip().splitlines()[-1]
        assert last.startswith("guidestack: ")
        assert message in last
    # The weights are stored in float32; in bfloat16 they are others.
    status, _, err = run(*use, "--steps", 4, "--guidance", stack, "--dtype", "bfloat16")
    assert (status, "the model 'UNet2DConditionModel:" in err) == (2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--steps": 5}, "was fitted for the steps '4' and this run has '5'"),
        ({"--sampler": "euler"}, "was fitted for the scheduler 'DDIMScheduler:"),
        ({"--negative": "dog"}, "was fitted for the negative prompt 'empty' and this run has 'given'"),
        ({"--guidance": "linear_ag(cfg(2), '{fit}')"}, "was fitted for the rule 'cfg(3)' and this run has 'cfg(2)'"),
        ({"--guidance": "linear_ag(cfg(3), '/nowhere/c.safetensors')"}, "cannot read the coefficients '/nowhere"),
        ({"--guidance": "linear_ag(cfg(3), 'emoji')"}, "no coefficients 'emoji'; did you mean"),
    ],
)
def test_what_a_fit_is_not_for_is_said_before_anything_runs(
    fit: Any, run: Any, model_folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "c.safetensors"
    assert fit(path)[0] == 0
    options: dict[str, object] = {"--guidance": "linear_ag(cfg(3), '{fit}')", "--sampler": "ddim", "--steps": 4}
    options |= {"--model": model_folder, "--out": tmp_path / "out", **change}
    options["--guidance"] = str(options["--guidance"]).format(fit=path)
    status, out, err = run("generate", "a", *(part for pair in options.items() for part in pair))
    assert (status, out) == (2, "")
    assert message in err
    assert "finished" not in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_said_before_anything_runs(
    fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_linear_ag, "Generator", lambda *given: pytest.fail("the model was loaded"))
    status, out, err = fit(Path("/proc/nothing/c.safetensors"))
    assert (status, out) == (2, "")
    assert err.startswith("guidestack: cannot write to /proc/nothing")
    assert len(err.splitlines()) == 1


def test_an_image_does_not_choose_which_file_is_read(fit: Any, run: Any, model_folder: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "tiny.safetensors", tmp_path / "made"
    assert fit(out)[0] == 0
    stack = f"linear_ag(cfg(3), '{out}')"
    options = ["--model", model_folder, "--out", made]
    status, _, err = run("generate", "a", "--guidance", stack, "--steps", 4, "--sampler", "ddim", *options)
    assert status == 0, err
    (image,) = made.glob("*.png")
    status, _, err = run("generate", "--like", image, *options)
    assert status == 2
    assert f"names the file '{out}'" in err


def test_explain_counts_25_evaluations(fit: Any, run: Any, tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    status, said, err = fit(out, "--steps", 20, "--trajectories", 1)
    assert status == 0, err
    assert "25 evaluations a sample instead of 40" in said
    status, said, err = run("explain", f"linear_ag(cfg(3), '{out}')", "--steps", 20)
    assert status == 0, err
    assert "\n25 evaluations a sample in 20 steps" in said
    assert "castillo2025adaptive" in said
    status, _, err = run("explain", f"linear_ag(cfg(3), '{out}')", "--steps", 25)
    assert (status, "the steps '20' and this run has '25'" in err) == (2, True)
    status, _, err = run("explain", "linear_ag(cfg(3), 'nowhere.safetensors')", "--steps", 20)
    assert (status, "No such file" in err) == (2, True)


def test_being_stopped_and_going_on_is_the_same(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, stopped = tmp_path / "straight.safetensors", tmp_path / "stopped.safetensors"
    assert fit(straight)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(fit_linear_ag, "_histories", failing(2, KeyboardInterrupt()))
        status, _, err = fit(stopped)
    assert status == 130
    assert "4 of 6 runs done, 2 missing; run it again to continue" in err
    assert not stopped.exists()
    part = stopped.with_name("stopped.safetensors.part")
    assert linear.read(part).trajectories == 4
    with monkeypatch.context() as patch:
        patch.setattr(fit_linear_ag, "_histories", failing(0, NonFiniteError("NaN here")))
        status, _, err = fit(stopped)
    assert (status, "4 of 6 runs done" in err, "guidestack: NaN here" in err) == (2, True, True)
    assert fit(stopped)[0] == 0
    assert stopped.read_bytes() == straight.read_bytes()
    assert not part.exists()


def test_each_run_has_a_seed_of_its_own_and_the_prompts_come_round(
    fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = fit_linear_ag._histories, []

    def histories(guided: Any, prompts: list[str], seeds: list[int], steps: int) -> Any:
        seen.extend(zip(prompts, seeds, strict=True))
        return original(guided, prompts, seeds, steps)

    monkeypatch.setattr(fit_linear_ag, "_histories", histories)
    status, _, err = fit(tmp_path / "tiny.safetensors", "--seed", 5, "--trajectories", 4, "--batch", 3)
    assert status == 0, err
    assert seen == [("a cat", 5), ("red", 6), ("sea", 7), ("a cat", 8)]


def test_a_part_that_is_whole_already_is_finished(fit: Any, tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    assert fit(out)[0] == 0
    data = out.read_bytes()
    out.rename(out.with_name(f"{out.name}.part"))
    status, said, err = fit(out)
    assert status == 0, err
    assert "6 runs of 4 steps" in said
    assert out.read_bytes() == data


def test_the_batch_does_not_matter(fit: Any, tmp_path: Path) -> None:
    fits = []
    for batch in (1, 4, 6):
        out = tmp_path / f"{batch}.safetensors"
        assert fit(out, "--batch", batch)[0] == 0
        fits.append(linear.read(out))
    for other in fits[1:]:
        # R is the root of the Gram matrix, whose entries are sums over all elements: rounding of the network, only.
        assert torch.allclose(other.triangle, fits[0].triangle, rtol=1e-4, atol=1e-4 * float(fits[0].triangle.max()))
        assert (other.trajectories, other.elements) == (6, 256)
    assert len({(tmp_path / f"{batch}.safetensors").read_bytes() for batch in (1, 4, 6)}) > 1


def test_a_part_made_otherwise_is_refused(
    fit: Any, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, more = tmp_path / "tiny.safetensors", tmp_path / "more.txt"
    more.write_text("another\n")
    with monkeypatch.context() as patch:
        patch.setattr(fit_linear_ag, "_histories", failing(1, KeyboardInterrupt()))
        assert fit(out)[0] == 130
    part = out.with_name(f"{out.name}.part")
    before = part.read_bytes()
    for options, message in (
        (["--guidance", "cfg(5)"], "guidance 'cfg(3)', this is 'cfg(5)'"),
        (["--steps", 5], "steps '4', this is '5'"),
        (["--seed", 1], "seed '0', this is '1'"),
        (["--sampler", "dpm++2m"], "sampler 'ddim', this is 'dpm++2m'"),
        (["--dtype", "bfloat16"], "model 'UNet"),
        (["--prompts", more], "prompts '3:"),
        (["--trajectories", 1], "has 2 runs already, more than --trajectories 1"),
    ):
        status, _, err = fit(out, *options)
        assert (status, message in err, err.strip().count("\n")) == (2, True, err.strip().count("\n")), err
        assert part.read_bytes() == before
    # Of the same weights under another scheduler's settings only the first call tells.
    from diffusers import DDIMScheduler

    folder = tmp_path / "other"
    shutil.copytree(model_folder, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"beta_end": 0.02', '"beta_end": 0.019'))
    status, _, err = fit(out, "--model", folder)
    assert status == 2
    here = scheduler_identity(scheduler := DDIMScheduler.from_pretrained(folder / "scheduler"), grid_of(scheduler))
    assert re.search(rf"made with scheduler 'DDIMScheduler:\w+', this is '{here['scheduler']}'", err)
    assert part.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.pt"], "--out ends in .safetensors; got 'x.pt'"),
        (["--guidance", "tsg(3)"], "a perturbed network"),
        (["--guidance", "linear_ag(cfg(3), 'x')"], "linear_ag around linear_ag"),
        (["--guidance", "cfg(3) | nothing()"], "unknown rule 'nothing'"),
        (["--sampler", "heun"], "this sampler has two"),
        (["--sampler", "nothing"], "unknown sampler 'nothing'"),
        (["--device", "nowhere"], "device 'nowhere' cannot be used"),
        (["--prompts", "/nowhere"], "cannot read the prompts"),
        (["--trajectories", 0], "--trajectories"),
        (["--steps", 1001], "--steps"),
    ],
)
def test_errors_are_one_line(fit: Any, tmp_path: Path, options: list[object], message: str) -> None:
    status, said, err = fit(tmp_path / "tiny.safetensors", *options)
    assert (status, said) == (2, "")
    last = err.strip().replace("\r", "\n").splitlines()[-1]
    assert last.startswith("guidestack: ")
    assert message in last
    assert "Traceback" not in err


def test_a_finished_file_is_not_written_over(fit: Any, tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    out.write_bytes(b"mine")
    status, _, err = fit(out)
    assert (status, "is there already; choose another --out or remove it" in err) == (2, True)
    assert out.read_bytes() == b"mine"
