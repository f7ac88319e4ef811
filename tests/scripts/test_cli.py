"""The command line as a user meets it: a process, its output, its exit status, the files it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guidestack.guidance.report import Report
from guidestack.pipelines.models import manifest
from guidestack.pipelines.models.files import read_recipe
from guidestack.scripts import cli
from guidestack.scripts.cli import COMMANDS, summary

from ..pipelines.tiny import load
from ..spoiling import registered

QUICK = ["--steps", "2", "--sampler", "ddim"]


@pytest.fixture
def run(command: Any) -> Any:
    """``run(*arguments) -> (exit status, stdout, stderr)``, in this process: loading torch anew takes seconds."""
    return command


def last_line(text: str) -> str:
    return text.strip().replace("\r", "\n").splitlines()[-1]


def picture(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def pixels(folder: Path) -> dict[str, Any]:
    return {path.name: picture(path) for path in sorted(folder.glob("*.png"))}


def test_images_with_all_it_takes_to_make_them_again(run: Any, model_folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    options = ["--count", 2, "--batch", 3, "--negative", "dog", "--guidance", "cfg(3) | rescale(0.5)", "--seed", 5]
    options += ["--model", model_folder, "--out", made, "--size", "24x16", *QUICK]
    status, out, err = run("generate", "a cat", "red", *options)
    assert status == 0, err
    assert "4 images" in out
    assert "16 network evaluations" in out
    files = sorted(made.glob("*.png"))
    assert len(files) == 4
    assert {read_recipe(path)["seed"] for path in files} == {5, 6, 7, 8}
    assert picture(files[0]).shape == (24, 16, 3)
    for path in files:
        again = tmp_path / "again" / path.stem
        status, _, err = run("generate", "--like", path, "--model", model_folder, "--out", again)
        assert status == 0, err
        assert np.array_equal(picture(again / path.name), picture(path))


def test_an_image_is_the_same_in_every_batch(run: Any, model_folder: Path, tmp_path: Path) -> None:
    sets = []
    for batch in (1, 2, 5):
        status, _, err = run("generate", "a", "b", "c", "d", "e", "--batch", batch, "--model", model_folder, "--out",
                             tmp_path / str(batch), "--guidance", "cfg(3)", *QUICK)  # fmt: skip
        assert status == 0, err
        sets.append(pixels(tmp_path / str(batch)))
    for other in sets[1:]:
        assert other.keys() == sets[0].keys()
        for name, image in other.items():
            away = np.abs(image.astype(int) - sets[0][name].astype(int))
            assert away.max() <= 1
            assert (away > 0).mean() < 0.01
    assert len({image.tobytes() for image in sets[0].values()}) == 5


def test_several_negatives_under_perp_neg(run: Any, model_folder: Path, tmp_path: Path) -> None:
    options = ["--negative", "dog | red", "--negative", "sea", "--extra-prompt", "big", "--extra-prompt", ""]
    options += ["--model", model_folder, "--guidance", "perpneg(3, weights=(1, 0.5))", *QUICK]
    status, out, err = run("generate", "a cat", "blue", *options, "--batch", 2, "--out", tmp_path / "both")
    assert status == 0, err
    assert "16 network evaluations" in out  # two steps of 2 + 3 and of 2 + 1
    first = next(path for path in (tmp_path / "both").iterdir() if "a-cat" in path.name)
    assert (read_recipe(first)["negative"], read_recipe(first)["extra"]) == ("dog | red", "big")
    status, _, err = run("generate", "--like", first, "--model", model_folder, "--out", tmp_path / "again")
    assert status == 0, err
    assert np.array_equal(picture(tmp_path / "again" / first.name), picture(first))


def test_a_second_run_makes_only_what_is_missing(run: Any, model_folder: Path, tmp_path: Path) -> None:
    command = ["generate", "a cat", "--count", 3, "--model", model_folder, "--out", tmp_path, *QUICK]
    assert run(*command)[0] == 0
    files = sorted(tmp_path.glob("*.png"))
    before = {path: path.stat().st_mtime_ns for path in files}
    files[1].unlink()
    status, out, _ = run(*command)
    assert (status, "1 image in" in out, "2 were there already" in out) == (0, True, True)
    assert files[0].stat().st_mtime_ns == before[files[0]]
    assert files[1].exists()
    assert "3 images" in run(*command, "--overwrite")[1]
    assert "3 images" in run(*command, "--guidance", "cfg(2)")[1]  # another stack is another image


def test_a_grid_has_a_row_for_each_stack(run: Any, model_folder: Path, tmp_path: Path) -> None:
    grid = tmp_path / "deep" / "grid.png"
    status, out, err = run("generate", "a", "b", "--guidance", "stack()", "--guidance", "cfg(3)", "--grid", grid,
                           "--model", model_folder, "--out", tmp_path, *QUICK)  # fmt: skip
    assert status == 0, err
    assert str(grid) in out
    assert len(list(tmp_path.glob("*.png"))) == 4
    height, width, _ = picture(grid).shape
    assert min(height, width) > 2 * 128


def test_prompts_from_a_file(run: Any, model_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("\ufeffa cat\n\n  ein Bär \r\n".encode())
    assert run("generate", "--prompts-from", prompts, "--model", model_folder, "--out", tmp_path, *QUICK)[0] == 0
    assert sorted(read_recipe(path)["prompt"] for path in tmp_path.glob("*.png")) == ["a cat", "ein Bär"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--guidance", "cgf(4)"], "unknown rule 'cgf'; did you mean 'cfg'?"),
        (["a", "--guidance", "cfg(4, agianst=1)"], "did you mean 'against'?"),
        (["a", "--guidance", "cfg(four)"], "at character 5"),
        (["a", "--guidance", "cfg(4"], "at character 4"),
        (["a", "--guidance", "__import__('os').system('id')"], "at character 1"),
        (["a", "--guidance", "@nothing"], "no preset 'nothing'"),
        ([], "no prompt given"),
        (["a", "--prompts-from", "/nowhere/prompts"], "cannot read the prompts"),
        (["a", "--model", "/nowhere/model"], "no model at '/nowhere/model'"),
        (["a", "--sampler", "eular"], "unknown sampler 'eular'; did you mean 'euler'?"),
        (["a", "--sampler", "ddim-karras"], "drop '-karras'"),
        (["a", "--sampler", "flow-euler"], "is for a network that emits 'flow', and this model's emits"),
        (["a", "--sampler", "flow-heun"], "it can use ddim, "),
        (["a", "--sampler", "edm-euler"], "is for a network that emits 'edm"),
        (["a", "--sampler", "lcm", "--steps", "60"], "lcm does not take 60 steps"),
        (["a", "--size", "64"], "HEIGHTxWIDTH"),
        (["a", "--size", "60x64"], "multiples of 8 pixels; got 60x64"),
        (["a", "--size", "0x64"], "sides of 1 to 8192 pixels"),
        (["a", "--steps", "0"], "--steps"),
        (["a", "--seed", "-1"], "--seed"),
        (["a", "--batch", "x"], "--batch"),
        (["a", "--device", "nowhere"], "device 'nowhere' cannot be used"),
        (["a", "--negative", "b", "--negative", "c"], "2 --negative for 1 prompt;"),
        (["a", "--extra-prompt", "b"], "no rule of cfg(4) uses it; perpneg(scale) does"),
        (
            ["a", "--negative", "b | c", "--guidance", "perpneg(3, weights=(1, 1, 1))"],
            "has 3 weights and --negative 2 texts at most",
        ),
        (["a", "--guidance", "perpneg(3, positive_weights=(1,))"], "1 weight and --extra-prompt 0 texts"),
        (["a", "--guidance", "icg(3, source='class')"], "no random condition from source='class'"),
        (["a", "--guidance", "cfgpp(7.5)"], "a CFG scale of 7.5 corresponds to 0.6"),
        (["a", "--guidance", "apg(4, radius=0)"], "radius must be above 0"),
        (["a", "--guidance", "apg(4, momentum=1)"], "momentum must be in (-1, 1)"),
        (["a", "--guidance", "adaptive(cfg(4), threshold=-2)"], "threshold is a cosine"),
        (["a", "--guidance", "rescale(0.7) | cfg(4)"], "write cfg(4) | rescale(0.7)"),
        (["a", "--out", "/proc/nothing"], "cannot write"),
        (["--like", "/nowhere/x.png"], "cannot read the image"),
        (["a", "--nonsense"], "No such option"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    run: Any, model_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    more = [] if "--model" in arguments or "--like" in arguments else ["--model", str(model_folder)]
    more += [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    more += [] if "--steps" in arguments or "--like" in arguments else ["--steps", "2"]
    status, out, err = run("generate", *arguments, *more)
    assert status == 2
    assert message in last_line(err), err
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.rglob("*.png"))


def test_prompt_files_that_are_none(run: Any, tmp_path: Path) -> None:
    for content, message in ((b"caf\xe9", "not UTF-8 text (byte 3)"), (b"\n  \n", "has no prompts")):
        path = tmp_path / "prompts"
        path.write_bytes(content)
        status, _, err = run("generate", "--prompts-from", path)
        assert (status, message in err) == (2, True), err


def test_model_folders_that_are_none(run: Any, model_folder: Path, tmp_path: Path) -> None:
    def broken(change: Any) -> str:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(model_folder, folder)
        change(folder)
        status, _, err = run("generate", "a", "--model", folder, "--out", tmp_path / "out", *QUICK)
        assert status == 2
        return last_line(err)

    weights = "unet/diffusion_pytorch_model.safetensors"
    index = json.loads((model_folder / "model_index.json").read_text())
    other = json.dumps(index | {"_class_name": "VQDiffusionPipeline"})
    promptless = json.dumps(index | {"_class_name": "DDPMPipeline"})
    assert "incomplete: no folder 'unet'" in broken(lambda f: shutil.rmtree(f / "unet"))
    assert "incomplete: no weights in 'unet'" in broken(lambda f: (f / weights).unlink())
    assert "pickles only" in broken(lambda f: (f / weights).rename(f / "unet" / "diffusion_pytorch_model.bin"))
    assert "cannot load the model" in broken(lambda f: (f / weights).write_bytes(b"no safetensors"))
    assert "no model index" in broken(lambda f: (f / "model_index.json").write_text("[]"))
    assert "holds a VQDiffusionPipeline, for which there is no family record" in broken(
        lambda f: (f / "model_index.json").write_text(other)
    )
    assert "DDPMPipeline, which takes no prompts" in broken(lambda f: (f / "model_index.json").write_text(promptless))


def test_a_long_prompt_says_what_was_cut(run: Any, model_folder: Path, tmp_path: Path) -> None:
    status, _, err = run("generate", "a cat and two big dogs", "--model", model_folder, "--out", tmp_path, *QUICK)
    assert status == 0
    assert "longer than 16 tokens; cut off: 'ogs'" in err
    status, _, err = run("generate", "a cat | " * 1200, "--model", model_folder, "--out", tmp_path, *QUICK)
    assert status == 0
    assert "warning: the prompt 'a cat | " in err
    assert len(err) < 3000


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_nan_loses_its_own_image_only(run: Any, model_folder: Path, tmp_path: Path, batch: int) -> None:
    """Whatever the batch: images before and behind it are those that are made without it."""
    options = ["--model", model_folder, "--count", 5, "--seed", 3, "--batch", batch, *QUICK]
    status, _, err = run("generate", "a", "--guidance", "cfg(2)", "--out", tmp_path / "good", *options)
    assert status == 0, err
    with registered():
        texts = ["--guidance", "cfg(2) | spoil(5)", "--guidance", "cfg(2)"]
        status, _, err = run("generate", "a", *texts, "--out", tmp_path / "spoilt", *options)
    assert status == 2
    assert last_line(err).startswith("guidestack: 1 image lost: NaN or Inf at step 0 of 2")
    assert "9 of 10 images finished" in err
    good, spoilt = pixels(tmp_path / "good"), pixels(tmp_path / "spoilt")
    assert good.keys() < spoilt.keys()
    assert all(np.array_equal(spoilt[name], image) for name, image in good.items())
    made = {recipe["seed"]: name for name in spoilt.keys() - good.keys()
            for recipe in [read_recipe(tmp_path / "spoilt" / name)]}  # fmt: skip
    assert sorted(made) == [3, 4, 6, 7]
    by_seed = {read_recipe(tmp_path / "good" / name)["seed"]: image for name, image in good.items()}
    assert all(np.array_equal(spoilt[name], by_seed[seed]) for seed, name in made.items())


def test_a_model_that_answers_nan_makes_nothing(run: Any, new_pipe: Any, tmp_path: Path) -> None:
    import torch

    pipe = new_pipe()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    pipe.save_pretrained(tmp_path / "model")
    status, _, err = run(
        "generate", "a", "b", "--model", tmp_path / "model", "--out", tmp_path / "out", "--grid", tmp_path / "g.png",
        *QUICK,
    )  # fmt: skip
    assert status == 2
    assert last_line(err).startswith("guidestack: 2 images lost: NaN or Inf at step 0 of 2")
    assert not list(tmp_path.glob("**/*.png"))


def test_ctrl_c_keeps_what_is_finished(
    run: Any, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guidestack.scripts import studio

    original, calls = studio.images.write, []

    def write(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(studio.images, "write", write)
    status, _, err = run("generate", "a", "b", "c", "--model", model_folder, "--out", tmp_path, *QUICK)
    assert status == 130
    assert "1 of 3 images finished" in err
    assert "2 missing" in err
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".png"]


def test_a_full_disk_leaves_nothing_half_written(
    run: Any, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, path: Any, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    status, _, err = run("generate", "a", "--model", model_folder, "--out", tmp_path, *QUICK)
    assert status == 2
    assert "No space left on device" in last_line(err)
    assert [path.name for path in tmp_path.iterdir()] == [manifest.NAME]
    assert manifest.read(tmp_path) == {}


def test_images_of_others_are_untrusted(run: Any, model_folder: Path, tmp_path: Path) -> None:
    from guidestack.pipelines.models.files import write

    assert run("generate", "a", "--model", model_folder, "--out", tmp_path, *QUICK)[0] == 0
    (good,) = tmp_path.glob("*.png")
    recipe = read_recipe(good)
    for change, message in (
        ({"guidance": "__import__('os')"}, "unknown rule"),
        ({"steps": "2"}, "does not say how it was made in a form"),
        ({"steps": 10**9}, "out of range"),
        ({"extra": 1}, "does not say how"),
        ({"dtype": "float8"}, "does not say how"),
        ({"model": {"name": "bundled", "fingerprint": "0"}}, "was made with the model"),
    ):
        write(Image.new("RGB", (8, 8)), tmp_path / "x.png", recipe | change)
        status, _, err = run("generate", "--like", tmp_path / "x.png", "--model", model_folder, "--out", tmp_path / "o")
        assert (status, message in last_line(err)) == (2, True), err
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert "does not say how it was made; images of guidestack do, but no grid of them" in last_line(
        run("generate", "--like", tmp_path / "plain.png")[2]
    )
    (tmp_path / "no.png").write_text("no image")
    assert "cannot read" in run("generate", "--like", tmp_path / "no.png")[2]
    assert "say where that is with --model" in run("generate", "--like", good)[2]


def test_a_picture_of_edit_is_not_made_again_by_generate(run: Any, model_folder: Path, tmp_path: Path) -> None:
    rest = ["--model", model_folder, "--steps", 2, "--out"]
    assert run("generate", "a cat", "--sampler", "ddim", *rest, tmp_path / "first")[0] == 0
    (first,) = (tmp_path / "first").glob("*.png")
    assert run("edit", first, "red", *rest, tmp_path / "second")[0] == 0
    (second,) = (tmp_path / "second").iterdir()
    status, out, err = run("generate", "--like", second, "--model", model_folder, "--out", tmp_path / "third")
    assert (status, out) == (2, "")
    assert f"{second} was made by `guidestack edit`" in err
    assert "run `guidestack edit` again" in err
    assert not (tmp_path / "third").exists()


def test_images_without_a_negative_prompt_beside_those_with_one(run: Any, tmp_path: Path) -> None:
    """Stable Diffusion XL tells no negative prompt from an empty one."""
    load("StableDiffusionXLPipeline").make().save_pretrained(tmp_path / "model")
    more = ["--model", tmp_path / "model", "--size", "16x16", "--batch", 2, "--guidance", "cfg(3)", *QUICK]
    status, _, err = run(
        "generate", "a cat", "red", "--negative", "", "--negative", "blue", "--out", tmp_path / "b", *more
    )
    assert status == 0, err
    status, _, err = run("generate", "a cat", "--out", tmp_path / "a", *more)
    assert status == 0, err
    together, alone = pixels(tmp_path / "b"), pixels(tmp_path / "a")
    assert len(together) == 2
    [(name, wanted)] = alone.items()
    assert np.array_equal(together[name], wanted)


def test_several_negatives_where_one_is_taken(run: Any, model_folder: Path, tmp_path: Path) -> None:
    more = ["--model", model_folder, "--out", tmp_path, "--negative", "dog | sea", *QUICK]
    status, _, err = run("generate", "a", "b", "--guidance", "cfg(2)", *more)
    assert status == 0
    assert err.count("warning: cfg(2) takes one negative prompt: 'dog | sea' goes in as it is, with its bars") == 1
    status, _, err = run("generate", "a", "--guidance", "perpneg(2)", *more)
    assert status == 0
    assert "takes one negative prompt" not in err


def test_output_folders_are_tried_before_the_model_is_loaded(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guidestack.scripts.generating.Generator", lambda *given: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    for folder, option in (("/proc/nothing", "--out"), (tmp_path / "file", "--out"), ("/proc/nothing/x.png", "--grid")):
        status, out, err = run("generate", "a", "--out", tmp_path / "new" / "out", option, folder)
        assert (status, out) == (2, "")
        assert err.startswith("guidestack: cannot write to ")
        assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_numbers_agree_with_their_nouns(run: Any, model_folder: Path, tmp_path: Path) -> None:
    more = ["--model", model_folder, "--out", tmp_path, "--guidance", "stack()", "--steps", 1, "--sampler", "ddim"]
    assert "1 image in" in run("generate", "a", *more)[1]
    status, out, _ = run("generate", "b", "c", *more)
    assert (status, "2 images in" in out, "2 network evaluations" in out) == (0, True, True)
    assert "1 network evaluation," in run("generate", "d", *more)[1]
    assert "cfg(4): 1 sample, 0 steps" in str(Report("cfg(4)", 1))
    assert "cfg(4): 2 samples, 0 steps" in str(Report("cfg(4)", 2))
    assert "1 evaluation a sample in 1 step of ddim" in run("explain", "stack()", "--steps", 1, "--sampler", "ddim")[1]


def test_a_sampler_by_another_programs_name(run: Any, model_folder: Path, tmp_path: Path) -> None:
    options = ["--model", model_folder, "--out", tmp_path, "--guidance", "stack()", "--steps", 2]
    assert run("generate", "a", *options, "--sampler", "DPM++ 2M Karras")[0] == 0
    [made] = tmp_path.glob("*.png")
    assert read_recipe(made)["sampler"] == "dpm++2m-karras"
    assert "1 was there already" in run("generate", "a", *options, "--sampler", "dpmpp_2m_karras")[1]
    assert run("generate", "b", *options, "--sampler", "sa-solver")[0] == 0


def test_explain_reads_the_models_scheduler(run: Any, tmp_path: Path) -> None:
    status, out, _ = run("explain", "cfg(4)", "--steps", 3, "--sampler", "Euler a")
    assert (status, "in 3 steps of euler-a" in out) == (0, True)
    status, out, err = run("explain", "cfg(4)", "--sampler", "flow-euler")
    assert (status, out) == (2, "")
    assert "sampler 'flow-euler' is for a network that emits 'flow', and this model's emits 'v'; it can use ddim" in err
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    assert "no scheduler/scheduler_config.json" in run("explain", "cfg(4)", "--model", tmp_path)[2]
    own = '{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}'
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(own)
    status, out, _ = run("explain", "cfg(4)", "--model", tmp_path, "--steps", 3, "--sampler", "flow-euler")
    assert (status, "in 3 steps of flow-euler" in out) == (0, True)
    assert "it can use flow-euler, flow-heun" in run("explain", "cfg(4)", "--model", tmp_path, "--sampler", "ddim")[2]


def test_rules_and_explain(run: Any) -> None:
    status, out, _ = run("rules")
    assert status == 0
    assert "cfg(scale, against='negative')" in out
    assert "arXiv:2207.12598" in out
    assert run("rules", "--markdown")[1].startswith("| rule |")
    status, out, _ = run(
        "explain", "during(cfg(4), progress=(0.25, 0.75)) | rescale(0.7)", "--steps", 4, "--sampler", "heun"
    )
    assert status == 0
    rows = [line.split() for line in out.splitlines() if line[:6].strip().replace(".", "").isdigit()]
    assert [(row[0], row[2]) for row in rows] == [
        ("0", "1"), ("0.1", "1"), ("1", "2"), ("1.1", "2"), ("2", "2"), ("2.1", "2"), ("3", "1"),
    ]  # fmt: skip
    assert "11 evaluations a sample in 4 steps of heun; unguided: 7" in out
    assert "kynkaanniemi2024applying" in out
    assert run("explain", "cfg(1)", "--steps", 3)[1].count("positive") == 3
    assert run("explain", "@interval-edm2")[0] == 0
    assert run("explain", "cgf(1)")[0] == 2
    status, out, err = run("explain", "cfg(4) | langevin(2)", "--steps", 3)
    assert (status, out, "langevin(steps=2) moves samples between two steps, and DPMSolver" in err) == (2, "", True)
    assert "use DDIMScheduler (--sampler ddim), " in err
    for command in (["explain"], ["generate", "a", "--guidance"]):  # before the sampler, and before any image
        status, out, err = run(*command, "cfg(3) | rectified_cfg(3)", "--steps", 3)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "rectified_cfg(3) is for flow models, and this network emits 'v'" in err
    assert "10 evaluations a sample" in run("explain", "cfg(4) | langevin()", "--steps", 3, "--sampler", "ddim")[1]
    assert run("expalin")[2].strip().endswith("did you mean 'explain'?")


def test_every_command_is_listed() -> None:
    """But gpu_check, which is run by make."""
    folder = Path(cli.__file__).parent
    files = {one.stem: one for one in folder.glob("*.py")} | {one.parent.name: one for one in folder.glob("*/cli.py")}
    found = {name.replace("_", "-") for name, file in files.items() if "\ndef command(" in file.read_text()}
    assert found - {"gpu-check"} == set(COMMANDS), "list it in COMMANDS of guidestack/scripts/cli.py"


def test_help_is_there_for_everything(run: Any) -> None:
    status, listed, _ = run("--help")
    assert status == 0
    for name in COMMANDS:
        status, out, _ = run(name, "--help")
        assert status == 0, name
        assert f"Usage: guidestack {name}" in out
        assert summary(name) in " ".join(out.split())
        assert summary(name) in " ".join(listed.split())
    assert run("--version")[0] == 0
