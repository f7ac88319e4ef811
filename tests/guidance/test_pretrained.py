"""A stack stored beside a model: written, read back, and nothing read that is not the folder's."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import guidestack as gs
from guidestack.guidance.errors import InputError, RuleError, StackSyntaxError
from guidestack.guidance.notation.presets import load_preset
from guidestack.guidance.rules.linear_ag import fit as linear
from guidestack.guidance.testing.checks import oracle_run
from guidestack.guidance.testing.composition import STACKS
from guidestack.pipelines.models.loading import fingerprint


@pytest.mark.parametrize("text", ["stack()", "cfg(7.5) | rescale(0.7)", "during(cfg(4), sigma=(0, inf))", *STACKS])
def test_there_and_back(text: str, tmp_path: Path) -> None:
    stack = gs.parse(text)
    path = gs.save_pretrained(stack, tmp_path / "new" / "model")
    assert path == tmp_path / "new" / "model" / "guidance.yaml"
    assert gs.from_pretrained(path.parent) == stack
    assert gs.from_pretrained(str(path.parent)) == stack
    assert load_preset(path) == stack  # the same layout
    assert path.read_text().startswith("# " + str(stack)[:20])
    assert [one.name for one in path.parent.iterdir()] == ["guidance.yaml"]


def test_every_form_is_stored_and_replaced(tmp_path: Path) -> None:
    for form in (gs.CFG(3), "cfg(3)", {"rules": [{"cfg": {"scale": 3}}]}):
        gs.save_pretrained("apg(6)", tmp_path)
        gs.save_pretrained(form, tmp_path)
        assert gs.from_pretrained(tmp_path) == gs.Stack(gs.CFG(3))


def test_coefficients_travel_along(oracle_fit: Callable[..., Any], tmp_path: Path) -> None:
    oracle_fit(gs.CFG(3), "mine.safetensors")
    stack = gs.LinearAG(gs.CFG(3), str(tmp_path / "mine.safetensors"))
    wanted = oracle_run(stack).outputs
    gs.save_pretrained(stack, tmp_path / "model")
    written = (tmp_path / "model" / "guidance.yaml").read_text()
    assert yaml.safe_load(written)["rules"][0]["linear_ag"]["coefficients"] == "guidance/mine.safetensors"
    (tmp_path / "mine.safetensors").unlink()
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")  # the folder is all there is
    loaded = gs.from_pretrained(tmp_path / "elsewhere")
    assert all(bool((a == b).all()) for a, b in zip(oracle_run(loaded).outputs, wanted, strict=True))
    gs.save_pretrained(loaded, tmp_path / "elsewhere")  # into its own folder
    assert gs.from_pretrained(tmp_path / "elsewhere") == loaded


def test_those_of_guidestack_are_named(tmp_path: Path) -> None:
    name = linear.names()[0]
    stack = gs.Stack(gs.LinearAG(gs.CFG(4), name))
    gs.save_pretrained(stack, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["guidance.yaml"]
    assert gs.from_pretrained(tmp_path) == stack


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the coefficients"):
        gs.save_pretrained(gs.LinearAG(gs.CFG(3), str(tmp_path / "none.safetensors")), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/guidance\.yaml.*; choose another folder"):
        gs.save_pretrained("cfg(3)", tmp_path / "file")
    with pytest.raises(StackSyntaxError):
        gs.save_pretrained("cgf(3)", tmp_path)


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gs.save_pretrained("cfg(3)", tmp_path)
    monkeypatch.setattr(Path, "replace", lambda self, other: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="No space left"):
        gs.save_pretrained("apg(6)", tmp_path)
    monkeypatch.undo()
    assert gs.from_pretrained(tmp_path) == gs.Stack(gs.CFG(3))
    assert [one.name for one in tmp_path.iterdir()] == ["guidance.yaml"]


def linear_ag(coefficients: str) -> str:
    return f"rules:\n- linear_ag: {{rule: {{cfg: {{scale: 3}}}}, coefficients: {coefficients!r}}}\n"


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("rules: [", InputError, "is not the YAML of a stack"),
        ("!!python/object/apply:os.system ['id']", InputError, "is not the YAML of a stack"),
        ("3", StackSyntaxError, "guidance.yaml of '.*': a stack is a mapping"),
        ("rules:\n- cgf: {scale: 3}", StackSyntaxError, "guidance.yaml of '.*': unknown rule 'cgf'; did you mean"),
        ("rules:\n- cfg: {scale: high}", RuleError, "guidance.yaml of '.*': CFG: scale"),
        (linear_ag("/etc/mine.safetensors"), InputError, "which is not in the model's folder"),
        (linear_ag("../mine.safetensors"), InputError, "which is not in the model's folder"),
        (linear_ag("guidance/../../mine.safetensors"), InputError, "which is not in the model's folder"),
        (linear_ag("..\\mine.safetensors"), InputError, "which is not in the model's folder"),
        (linear_ag("C:mine.safetensors"), InputError, "which is not in the model's folder"),
        (linear_ag("mine.pt"), InputError, "others, pickles above all, are not read"),
        (linear_ag("mine.safetensors"), InputError, "no mine.safetensors in "),
        (linear_ag("pickle.safetensors"), InputError, "cannot read the coefficients"),
        (linear_ag("link.safetensors"), InputError, "is a link that leads out of the folder"),
    ],
)
def test_bad_files(text: str, error: type[Exception], reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "mine.safetensors").write_bytes(b"outside")
    (folder / "link.safetensors").symlink_to(tmp_path / "mine.safetensors")
    (folder / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (folder / "guidance.yaml").write_text(text)
    with pytest.raises(error, match=reason) as caught:
        gs.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no guidance\.yaml in .*save_pretrained"):
        gs.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no such folder .*/nothing' with guidance\.yaml"):
        gs.from_pretrained(tmp_path / "nothing")
    (tmp_path / "guidance.yaml").write_bytes(pickle.dumps("x"))
    with pytest.raises(InputError, match="is not UTF-8 text") as caught:
        gs.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def in_the_cache(cache: Path, source: Path, commit: str = "0" * 40) -> Path:
    """A model in a cache of the hub's, as a download leaves it: links to blobs."""
    model = cache / "models--them--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "blobs").mkdir()
    snapshot = model / "snapshots" / commit
    for index, path in enumerate(sorted(one for one in source.rglob("*") if one.is_file())):
        blob, link = model / "blobs" / f"{index:064d}", snapshot / path.relative_to(source)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def test_from_the_hub_cache(oracle_fit: Callable[..., Any], tmp_path: Path) -> None:
    oracle_fit(gs.CFG(3), "mine.safetensors")
    gs.save_pretrained(gs.LinearAG(gs.CFG(3), "mine.safetensors"), tmp_path / "source")
    snapshot = in_the_cache(tmp_path / "hub", tmp_path / "source")
    loaded = gs.from_pretrained("them/model", cache_dir=tmp_path / "hub", local_files_only=True)
    (rule,) = loaded.rules
    assert rule == gs.LinearAG(gs.CFG(3), str(snapshot / "guidance" / "mine.safetensors"))
    assert oracle_run(loaded).outputs
    assert gs.from_pretrained(snapshot) == loaded
    for name in ("them/other", "them/mo del"):
        with pytest.raises(InputError, match=f"cannot get guidance.yaml of '{name}' from the hub") as caught:
            gs.from_pretrained(name, cache_dir=tmp_path / "hub", local_files_only=True)
        assert "\n" not in str(caught.value)


def test_a_stack_is_not_the_model(oracle_fit: Callable[..., Any], model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    oracle_fit(gs.CFG(3), "mine.safetensors")
    gs.save_pretrained(gs.LinearAG(gs.CFG(3), "mine.safetensors"), folder)
    assert (folder / "guidance" / "mine.safetensors").is_file()
    assert fingerprint(folder) == fingerprint(model_folder)


def test_a_two_part_name_beside_a_folder(
    oracle_fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a folder that is not there, or a model of the hub: of that, what was downloaded is found."""
    asked: list[str] = []

    class Api:
        def model_info(self, name: str, **options: Any) -> None:
            asked.append(name)
            raise answers[0]

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.chdir(tmp_path)
    gs.save_pretrained("cfg(3)", tmp_path / "source")
    in_the_cache(tmp_path / "hub", tmp_path / "source")
    answers: list[Exception] = [OSError("no route")]
    (tmp_path / "them").mkdir()
    assert gs.from_pretrained("them/model", cache_dir=tmp_path / "hub") == gs.Stack(gs.CFG(3))
    with pytest.raises(
        InputError, match="no such folder here, the hub has no such model, or cannot be reached"
    ) as caught:
        gs.from_pretrained("them/other", cache_dir=tmp_path / "hub")
    assert "\n" not in str(caught.value)
    assert asked == ["them/model", "them/other"]
    # No folder of the first part's name: the hub is asked for the file itself.
    with pytest.raises(InputError, match="there is no such folder here, the hub cannot be reached"):
        gs.from_pretrained("us/other", cache_dir=tmp_path / "hub")
    assert len(asked) == 2
