"""``make gpu-check``: its checks tell what holds from what does not, on a CPU, and with what stands in for a GPU."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from guidestack.guidance.errors import NonFiniteError
from guidestack.guidance.notation import registry
from guidestack.guidance.notation.text import parse
from guidestack.guidance.plan import plan
from guidestack.guidance.query import Query
from guidestack.pipelines.doctor.trials import FITTED
from guidestack.scripts import gpu_check
from guidestack.scripts.bench import accelerator, models
from guidestack.scripts.gpu_check import BUNDLED, SHAPED, Row, Size, Subject
from guidestack.scripts.rules import SCHEDULE

CPU = torch.device("cpu")
SIZE = gpu_check.QUICK


@pytest.fixture
def subject(new_pipe: Callable[[], Any]) -> Subject:
    pipe = new_pipe()
    pipe.set_progress_bar_config(disable=True)
    return Subject(BUNDLED, pipe, "float32", {})


def outcomes(rows: list[Row]) -> dict[str, str]:
    return {row.what: row.outcome for row in rows}


def altered(subject: Subject, monkeypatch: pytest.MonkeyPatch, alter: Callable[[Tensor, str], Tensor]) -> None:
    """From now on the samples of guided runs are others."""
    guided = subject.guided
    monkeypatch.setattr(subject, "guided", lambda stack, *rest: alter(guided(stack, *rest), stack))


# --- each check ------------------------------------------------------------------------------------------------------


def test_parity_is_to_the_bit(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcomes(list(gpu_check.parity(subject, SIZE))) == {"1 image": "pass", "2 images": "pass"}
    altered(subject, monkeypatch, lambda found, _: torch.nextafter(found, found + 1))
    assert outcomes(list(gpu_check.parity(subject, SIZE))) == {"1 image": "FAIL", "2 images": "FAIL"}


def test_every_rule_is_compared_with_its_float32_run(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = gpu_check.references(subject, SIZE)
    half = Subject(BUNDLED, copy.deepcopy(subject.pipe).to(torch.bfloat16), "bfloat16", {})
    rows = list(gpu_check.rules(half, SIZE, wanted))
    tried = {name for row in rows for name in (gpu_check.names(row.what) if "(" in row.what else [row.what])}
    assert tried == {entry.name for entry in registry.rules()}
    left_out = {"icg(3, source='class')", "cfg(6) | threshold()", "rectified_cfg(2)", "resample(3, 4)", FITTED}
    assert outcomes(rows) == {row.what: "not made" if row.what in left_out else "pass" for row in rows}
    assert all(0 < row.numbers["away"] <= row.numbers["limit"] for row in rows if row.outcome == "pass")

    def worse(found: Tensor, stack: str) -> Tensor:
        if stack.startswith("apg("):
            return found + 0.3 * found.abs().max()
        return found.where(found < found.max(), torch.nan) if stack.startswith("tsg(") else found

    altered(half, monkeypatch, worse)
    found = outcomes(list(gpu_check.rules(half, SIZE, {name: one for name, one in wanted.items() if name != "cfg(3)"})))
    # The last has no float32 run: that the pipeline in half precision can do what it cannot in float32 holds nothing.
    failed = [what.partition("(")[0] for what, outcome in found.items() if outcome == "FAIL"]
    assert failed == ["apg", "cfg", "tsg"]


APG = "apg(3, radius=2, momentum=-0.5)"
ADAPTIVE = "adaptive(cfg(3), threshold=0.95, space='denoised')"


def test_waits_are_those_beyond_the_stock_pipelines(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def stock(samples: Any, steps: int) -> None:
        ran.append(5 + 2 * steps)  # five a run, two a step

    def guided(stack: str, samples: Any, steps: int) -> None:
        more = {ADAPTIVE: 1, APG: 1, "adaptive(cfg(3), lag=1)": 0.5, "icg(3)": 0.25}.get(stack, 0)
        ran.append(9 + int((2 + more) * steps))

    monkeypatch.setattr(subject, "stock", stock)
    monkeypatch.setattr(subject, "guided", guided)

    def count(device: torch.device, run: Callable[[], Any]) -> int:
        run()
        return ran[-1]

    size = Size(steps=4)
    found = {row.what: row for row in gpu_check.waits(subject, size, CPU, count)}
    assert {what for what, row in found.items() if row.outcome == "FAIL"} == {APG, "adaptive(cfg(3), lag=1)"}
    assert {what for what, row in found.items() if row.outcome == "figure"} == {ADAPTIVE, "icg(3)"}
    assert found["cfg(3)"].outcome == "pass"
    assert found[APG].numbers == {"waits": 1, "stock": 2}


def test_waits_are_not_told_on_a_cpu(subject: Subject) -> None:
    (row,) = gpu_check.waits(subject, SIZE, CPU)
    assert (row.outcome, row.text) == ("not made", "torch does not report waits on cpu")


def test_seeds_are_the_images_own(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(outcomes(list(gpu_check.seeds(subject, SIZE))).values()) == {"pass"}
    altered(subject, monkeypatch, lambda found, stack: found + 0.1 * len(found) if stack == "icg(3)" else found)
    assert [row.what for row in gpu_check.seeds(subject, SIZE) if row.outcome == "FAIL"] == ["icg(3)"]
    altered(subject, monkeypatch, lambda found, stack: torch.ones_like(found))  # whatever the seed
    assert {row.outcome for row in gpu_check.seeds(subject, SIZE)} == {"FAIL"}


def test_costs_are_of_every_number_of_images_that_there_is_time_for(subject: Subject) -> None:
    go = iter([True, False])
    first, second = gpu_check.cost(subject, SIZE, CPU, lambda: next(go))
    assert (first.outcome, second.outcome, second.text) == ("figure", "not made", "no time left")
    for name in gpu_check.COSTS[BUNDLED]:
        assert first.numbers[f"{name}: time"] > 0
        assert first.numbers[f"{name}: images a second"] > 0
    assert first.numbers["CFG: memory"] == pytest.approx(1, abs=0.05)
    assert first.numbers["unguided: memory"] < 1


@pytest.mark.parametrize(
    ("error", "outcome", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "not made", "out of memory"),
        (NonFiniteError("NaN at step 0"), "FAIL", "NonFiniteError: NaN at step 0"),
        (RuntimeError("CUDA error:\nan illegal memory access"), "FAIL", "RuntimeError: CUDA error: an illegal memory"),
    ],
)
def test_what_breaks_is_a_row(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str, text: str
) -> None:
    def broken(*rest: Any) -> Any:
        raise error

    monkeypatch.setattr(subject, "guided", broken)
    for row in gpu_check.parity(subject, SIZE):
        assert row.outcome == outcome
        assert text in row.text
    monkeypatch.setattr(subject, "stock", broken)
    (row,) = gpu_check.whole("m", "float16", gpu_check.rules(subject, SIZE, {}))
    assert (row.outcome, row.what) == (outcome, "the rest")


def test_what_there_is_no_time_for_says_so(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    monkeypatch.setattr(gpu_check, "subject", lambda *rest, **more: subject)
    monkeypatch.setattr(gpu_check, "references", lambda *rest: {})
    rows = list(gpu_check.check(CPU, SIZE, minutes=0))
    compared = [row for row in rows if row.check != "cost"]
    assert [row.check for row in compared] == [
        "parity",
        "all",
    ] * 2  # one row of each model, and that the rest was not made
    assert {row.text for row in rows if row.outcome == "not made"} == {"no time left"}
    assert len(rows) == 4 + 2 * len(SIZE.batches)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_on_a_cpu(monkeypatch: pytest.MonkeyPatch, new_pipe: Callable[[], Any], tmp_path: Path) -> None:
    """On a smaller pipeline than the bundled one, whose scheduler and decoder the other takes as well."""
    monkeypatch.setattr(models, "bundled", lambda: copy.deepcopy(made))
    made = new_pipe()
    made.set_progress_bar_config(disable=True)
    to = tmp_path / "new" / "found.json"
    found = CliRunner().invoke(gpu_check.command, ["--device", "cpu", "--quick", "--json", str(to)])
    assert found.exit_code == 0, found.output
    told = json.loads(to.read_text())
    assert {"device", "driver", "torch", "diffusers", "python", "threads"} <= set(told["machine"])
    for name in (BUNDLED, SHAPED):
        rows = [row for row in told["rows"] if row["model"] == name]
        assert {row["check"] for row in rows} == {"parity", "rules", "waits", "seeds", "cost"}
        assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert [row["what"] for row in told["rows"] if row["outcome"] == "FAIL"] == []
    for row in told["rows"]:
        assert Row(**row).line() in found.output
    assert re.search(r"\d+ pass, 0 FAIL, 4 figure, \d+ not made; \d+ s; please send", found.output.splitlines()[-1])


def test_a_failed_check_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [
        Row("m", "float16", "parity", "1 image", "FAIL", "apart", {}),
        Row("m", "float16", "x", "y", "pass", "", {}),
    ]
    monkeypatch.setattr(gpu_check, "check", lambda *rest: iter(rows))
    to = tmp_path / "found.json"
    found = CliRunner().invoke(gpu_check.command, ["--device", "cpu", "--quick", "--json", str(to)])
    assert found.exit_code == 1
    assert found.output.splitlines()[-2] == rows[0].line()  # once more at the end
    assert len(json.loads(to.read_text())["rows"]) == 2


def test_without_an_accelerator_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "chosen_device", lambda given: given or "cpu")
    to = tmp_path / "found.json"
    found = CliRunner().invoke(gpu_check.command, ["--json", str(to)])
    assert found.exit_code == 0
    assert found.output.startswith("no accelerator: ")
    assert len(found.output.splitlines()) == 1
    assert not to.exists()


def test_a_network_that_does_not_fit_is_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((80 * 2**30, models.Xl()), (8 * 2**30, gpu_check.SMALLER), (None, gpu_check.SMALLER)):
        monkeypatch.setattr(accelerator, "free", lambda device, free=free: free)
        assert gpu_check.sized(torch.device("cuda"), Size()).xl == expected
    assert gpu_check.sized(CPU, Size()).xl == models.Xl()


# --- what stands in for an accelerator -------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Torch's functions for CUDA, as far as they are used; what they were told is what the fixture gives."""
    told: dict[str, Any] = {"mode": 0, "finished": 0, "reset": 0, "allocated": 100}

    def told_mode(mode: Any) -> None:
        told["mode"] = mode

    def told_more(name: str) -> Callable[..., None]:
        def more(*rest: Any) -> None:
            told[name] += 1

        return more

    for name, stand_in in {
        "synchronize": told_more("finished"),
        "get_sync_debug_mode": lambda: told["mode"],
        "set_sync_debug_mode": told_mode,
        "reset_peak_memory_stats": told_more("reset"),
        "memory_allocated": lambda device: 100,
        "max_memory_allocated": lambda device: told["allocated"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return told


def test_waits_are_torchs_own_warnings(cuda: dict[str, Any]) -> None:
    def run() -> None:
        assert cuda["mode"] == "warn"
        for _ in range(3):  # from the same line, which Python's filter shows once by default
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("another", stacklevel=1)

    assert accelerator.waits(torch.device("cuda"), run) == 3
    assert cuda["mode"] == 0
    with pytest.raises(ZeroDivisionError):
        accelerator.waits(torch.device("cuda"), lambda: 1 // 0)
    assert cuda["mode"] == 0
    assert accelerator.waits(torch.device("mps"), run) is None
    assert accelerator.waits(CPU, run) is None


def test_waits_in_the_network_are_counted_in_both_kinds_of_runs(cuda: dict[str, Any], subject: Subject) -> None:
    def wait(*rest: Any) -> None:
        if cuda["mode"] == "warn":
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)

    subject.pipe.unet.register_forward_hook(wait)
    device = torch.device("cuda")
    assert accelerator.waits(device, lambda: subject.stock((0,), 3)) == 3
    assert accelerator.waits(device, lambda: subject.guided("cfg(3)", (0,), 3)) == 3
    # Schedules that ask the network at fewer steps wait less often, those that call it twice a step more.
    found = outcomes(list(gpu_check.waits(subject, SIZE, device)))
    twice = {text for text in found if any(apart(query) for part in parse(text).parts() for query in part.asks())}
    made = [text for text in found if text and found[text] != "not made"]
    twice |= {text for text in made if any(one.turn and one.queries for one in plan(parse(text), SCHEDULE))}
    assert "tsg(3, strength=0.8)" in twice
    assert {what for what, outcome in found.items() if outcome == "FAIL"} == twice


def apart(query: Query) -> bool:
    """Whether a query is answered in a call of its own: of another network, or of one that is changed for it."""
    return bool(query.perturbation or query.edits or query.model != "main")


def test_memory_is_what_a_run_takes_beyond_what_was_there(cuda: dict[str, Any]) -> None:
    def run() -> None:
        assert cuda["reset"] == 1
        cuda["allocated"] = 164

    assert accelerator.peak(torch.device("cuda"), run) == 64
    assert accelerator.peak(torch.device("mps"), run) is None
    assert accelerator.peak(CPU, lambda: torch.ones(1000)) == 4000


def test_the_clock_waits_for_the_device(cuda: dict[str, Any]) -> None:
    now = accelerator.clock(torch.device("cuda"))
    assert now() <= now()
    assert cuda["finished"] == 2


def test_exact_puts_back_what_was_set() -> None:
    def settings() -> list[bool]:
        return [
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.deterministic,
        ]

    before = settings()
    with accelerator.exact():
        assert settings() == [False, False, True]
    assert settings() == before


def test_a_device_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        name, total_memory, major, minor = "Some GPU", 8 * 2**30, 9, 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Found())
    monkeypatch.setattr(accelerator.shutil, "which", lambda name: None)
    found = accelerator.describe(torch.device("cuda"))
    assert found["device"] == "Some GPU, 8 GiB, capability 9.0"
    assert found["driver"] == "unknown: no nvidia-smi"
    assert accelerator.describe(CPU)["device"] == "cpu"


# --- the network of Stable Diffusion XL's shape ----------------------------------------------------------------------


class Shape(Exception):
    pass


@pytest.mark.slow
def test_its_shape_is_stable_diffusion_xls(monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(module: torch.nn.Module, *rest: Any) -> torch.nn.Module:
        if type(module).__name__ == "UNet2DConditionModel":
            raise Shape(sum(one.numel() for one in module.parameters()))
        return module

    monkeypatch.setattr(models, "filled", filled)
    with pytest.raises(Shape, match=r"^2567463684$"):
        models.xl_shaped(CPU, torch.float16, models.Xl())


def test_its_weights_are_the_same_in_every_type() -> None:
    full, half = (models.xl_shaped(CPU, dtype, SIZE.xl) for dtype in (torch.float32, torch.bfloat16))
    for one, other in zip(full.unet.parameters(), half.unet.parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other)


# --- make gpu-check --------------------------------------------------------------------------------------------------


def test_make_keeps_the_torch_that_is_there() -> None:
    root = Path(__file__).parents[2]
    makefile = (root / "Makefile").read_text()
    (pattern,) = re.findall(r"grep -v '(.*)' constraints.txt > \$\(GPU_VENV\)/constraints.txt", makefile)
    pins = (root / "constraints.txt").read_text().splitlines()
    left_out = [line for line in pins if re.search(pattern, line)]
    assert [line.partition("==")[0] for line in left_out] == ["torch"]
    recipe = makefile.partition("$(GPU_VENV)/.installed: ")[2].partition("\n\n")[0]
    assert "--system-site-packages" in recipe
    assert "--constraint $(GPU_VENV)/constraints.txt" in recipe
