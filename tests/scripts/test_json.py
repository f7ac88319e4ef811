"""``--json``: one document with the same content as the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guidestack.guidance.notation.presets import load_preset, names


def document(told: tuple[int, str, str], status: int = 0) -> dict[str, Any]:
    """What a command printed, which is JSON to the letter: no NaN, no infinity."""
    assert (told[0], told[2]) == (status, "")

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    found: dict[str, Any] = json.loads(told[1], parse_constant=refuse)
    return found


def test_explain(command: Any) -> None:
    asked = ("during(cfg(4), progress=(0.25, 0.75)) | rescale(0.7)", "--steps", 4, "--sampler", "Heun")
    told = document(command("explain", *asked, "--json"))
    assert list(told) == [
        "stack", "sampler", "steps", "evaluations", "at_most", "unguided", "plan", "notes", "citation",
    ]  # fmt: skip
    assert (told["sampler"], told["steps"], told["evaluations"], told["at_most"]) == ("heun", 4, 11, False)
    assert [list(one) for one in told["plan"]] == [["step", "evaluation", "turn", "sigma_over_alpha", "queries"]] * 7
    assert sum(len(one["queries"]) for one in told["plan"]) == 11
    assert [(one["step"], one["evaluation"]) for one in told["plan"]][:3] == [(0, 0), (0, 1), (1, 0)]
    text = command("explain", *asked)[1]
    for part in (
        told["stack"],
        told["citation"],
        f"unguided: {told['unguided']}",
        ", ".join(told["plan"][2]["queries"]),
    ):
        assert part in text
    assert document(command("explain", "adaptive(cfg(4), threshold=0.99)", "--json"))["at_most"] is True


def test_explain_where_the_first_level_is_noise_alone(command: Any, tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    own = '{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}'
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(own)
    asked = (
        "explain",
        "during(cfg(4), progress=(0.99, 1))",
        "--steps",
        3,
        "--sampler",
        "flow-euler",
        "--model",
        tmp_path,
    )
    told = document(command(*asked, "--json"))
    assert [one["sigma_over_alpha"] is None for one in told["plan"]] == [True, False, False]
    assert [f"note: {note}" for note in told["notes"]] == [
        line for line in command(*asked)[1].splitlines() if line.startswith("note: ")
    ]
    assert told["notes"]


def test_rules_and_presets(command: Any) -> None:
    told = document(command("rules", "--json"))
    assert list(told) == ["rules"]
    text = command("rules")[1]
    for one in told["rules"]:
        assert list(one) == ["name", "signature", "summary", "evaluations", "arxiv"]
        assert f"{one['signature']}\n    {one['summary']}\n    evaluations a step: {one['evaluations']}" in text
    assert len(told["rules"]) == text.count("evaluations a step: ")
    told = document(command("rules", "--presets", "--json"))
    assert [list(one) for one in told["presets"]] == [["name", "about", "stack"]] * len(names())
    assert [(one["name"], one["stack"]) for one in told["presets"]] == [(one, str(load_preset(one))) for one in names()]


def test_metrics(command: Any) -> None:
    told = document(command("metrics", "--json"))
    assert list(told) == ["metrics"]
    text = command("metrics")[1]
    assert text == "".join(f"{one['signature']}\n    {one['summary']}\n" for one in told["metrics"])
    assert {one["better"] for one in told["metrics"]} == {"up", "down", "none"}
    assert [list(one) for one in told["metrics"]] == [["name", "signature", "summary", "better", "fewest"]] * len(
        told["metrics"]
    )


def test_doctor(command: Any, model_folder: Path) -> None:
    told = document(command("doctor", model_folder, "--json"))
    assert list(told) == ["pipeline", "example", "checks", "trials", "notes", "ok", "summary"]
    assert (told["ok"], told["summary"]) == (True, "17 of 17 checks hold")
    reason = "cfg(3) is its own guidance, guidance_scale=3, to the bit"
    assert {"name": "cfg", "outcome": "pass", "reason": reason} in told["checks"]
    assert {"rule": "perpneg(3)", "evaluations": 3, "reason": "", "broken": False} in told["trials"]


def test_a_failed_doctor_is_a_document_too(command: Any, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "SanaPAGPipelineOfSomebody"}')
    told = document(command("doctor", tmp_path, "--json"), 1)
    assert told["ok"] is False
    assert {one["outcome"] for one in told["checks"]} == {"fail", "not made"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "cgf(1)", "--json"),
        ("rules", "--json", "--markdown"),
        ("rules", "--json", "--compositions"),
        ("metrics", "--json", "--markdown"),
        ("doctor", "./nowhere", "--json"),
    ],
)
def test_errors_leave_standard_output_empty(command: Any, arguments: tuple[str, ...]) -> None:
    status, out, err = command(*arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize("name", ["explain", "rules", "doctor", "metrics"])
def test_the_help_names_the_option(command: Any, name: str) -> None:
    assert "--json" in command(name, "--help")[1]
