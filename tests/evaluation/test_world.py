"""The exact worlds: laws against quadrature and closed forms, measures, how claims are decided, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import guidestack as gs
from guidestack.evaluation.verdicts import CONTRARY, HOLDS, NOTHING, UNDECIDED, overall, verdict
from guidestack.evaluation.world import MEASURES, WORLDS, Drawn, draw, measured
from guidestack.evaluation.world import claims as of_worlds
from guidestack.evaluation.world.claims import Cell, Store, findings, load_claim
from guidestack.evaluation.world.measures import AWAY, EVALUATIONS, Against, batched, interval
from guidestack.evaluation.world.picture import Panel, picture
from guidestack.evaluation.world.worlds import ALL, GuidedLaw, World
from guidestack.guidance.errors import GuidestackError, InputError
from guidestack.guidance.testing import GaussianMixture

PLANE, SPACE = WORLDS["plane"], WORLDS["space"]
BOTH = pytest.mark.parametrize("world", [PLANE, SPACE], ids=lambda world: world.name)


# --- the laws ------------------------------------------------------------------------------------------------------


@BOTH
def test_draws_of_a_condition_have_its_mean_and_its_covariance(world: World) -> None:
    law, weights = world.law("a outer"), world.weights("a outer")
    shares = weights / weights.sum()
    mean = shares @ world.mixture.means
    x = law.draw(100_000, 1)
    apart = world.mixture.means - mean
    covariance = (shares[:, None] * apart).T @ apart + (shares @ world.mixture.stds**2) * torch.eye(world.dimensions)
    assert torch.allclose(x.mean(0), mean, atol=0.005)
    assert torch.allclose(x.T.cov(), covariance, atol=0.005)
    assert torch.equal(x, law.draw(100_000, 1))
    assert not torch.equal(x, law.draw(100_000, 2))


def nodes(count: int = 300, edge: float = 3.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the square, and the weights of Gauss and Legendre's quadrature."""
    at, weight = (torch.from_numpy(one) * edge for one in np.polynomial.legendre.leggauss(count))
    return torch.cartesian_prod(at, at), (weight[:, None] * weight).flatten()


@pytest.mark.parametrize(("condition", "power"), [("a", 1.0), ("a", 3.0), ("b inner", 2.0), ("outer", 8.0)])
def test_a_guided_law_of_the_plane_agrees_with_quadrature(condition: str, power: float) -> None:
    at, weight = nodes()
    normal = (-((at[:, None] - PLANE.mixture.means) ** 2).sum(2) / (2 * PLANE.mixture.stds**2)).exp() / (
        2 * math.pi * PLANE.mixture.stds**2
    )
    chosen = PLANE.weights(condition)
    of_class, of_data = normal @ (chosen / chosen.sum()), normal @ PLANE.mixture.weights
    ratio = torch.where(of_class > 1e-200, of_class / of_data, 0.0)  # 0 / 0 in the corners of the square
    guided = of_class * ratio ** (power - 1) * weight
    law = PLANE.law(f"{condition}^{power}")
    assert isinstance(law, GuidedLaw)
    assert law.log_scale == pytest.approx(math.log(float(guided.sum())), abs=1e-6)
    share, x = guided / guided.sum(), law.draw(100_000, 3)
    mean = share @ at
    assert torch.allclose(x.mean(0), mean, atol=0.01)
    assert torch.allclose(x.T.cov(), (share[:, None] * (at - mean)).T @ (at - mean), atol=0.01)
    assert float((law.log_density(at).exp() * weight).sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0, 5.0])
def test_a_guided_law_of_two_gaussians_has_the_closed_forms_variance(power: float) -> None:
    """p(x|c) = N(0, 1), p(x) = N(0, 2), both of half the scale: variance 2 / (s + 1), a quarter of it here."""
    stds = torch.tensor([0.5, 0.5 * math.sqrt(2)], dtype=torch.float64)
    mixture = GaussianMixture(torch.zeros(2, 2).double(), stds, torch.tensor([0.0, 1.0]).double())
    law = GuidedLaw(mixture, torch.eye(2).double(), torch.tensor([1.0, 0.0]).double(), power)
    assert law.draw(200_000).var(0).tolist() == pytest.approx([0.25 * 2 / (power + 1)] * 2, rel=0.015)
    both = [math.log(2 * math.pi * std**2) for std in stds.tolist()]
    wanted = math.log(2 * math.pi * 0.25 * 2 / (power + 1)) - power * both[0] - (1 - power) * both[1]
    assert law.log_scale == pytest.approx(wanted, abs=1e-4)  # what lies outside of the square


@BOTH
@pytest.mark.parametrize("power", [1.0, 3.0])
def test_a_guided_density_is_that_of_its_formula_in_every_dimension(world: World, power: float) -> None:
    x = world.law(ALL).draw(50)
    law = world.law(f"a^{power}")
    formula = power * world.law("a").log_density(x) + (1 - power) * world.law(ALL).log_density(x)
    assert torch.allclose(law.log_density(x), formula - law.log_scale)
    if power == 1:
        assert law.log_scale == pytest.approx(0, abs=1e-6)


def test_the_guided_law_of_64_dimensions_is_the_law_of_its_draws() -> None:
    """Importance weights from the class to its guided law: the mean of a function under either is the same."""
    law, of_class, of_data = (SPACE.law(one) for one in ("a^2", "a", ALL))
    x = of_class.draw(200_000, 5)
    weight = (2 * of_class.log_density(x) - of_data.log_density(x) - of_class.log_density(x)).exp()
    weight /= weight.sum()
    y = law.draw(200_000, 6)
    assert torch.allclose(y.mean(0), weight @ x, atol=0.005)
    assert float(y.norm(dim=1).mean()) == pytest.approx(float(weight @ x.norm(dim=1)), abs=0.005)


def test_probabilities_of_the_classes_sum_to_one() -> None:
    x = PLANE.law(ALL).draw(100)
    total = sum(PLANE.posterior(x, name) for name in PLANE.classes)
    assert torch.allclose(total, torch.ones(100).double())
    assert float(PLANE.posterior(PLANE.law("a outer").draw(2000), "a outer").mean()) > 0.9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("d", "no 'd'"),
        ("a outr", "did you mean 'outer'"),
        ("inner outer", "hold of a component"),
        ("", "hold of a component"),
        ("a^0.5", "power from 1 to 100"),
        ("a^x", "power from 1 to 100"),
    ],
)
def test_a_law_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        PLANE.law(text)


def test_a_guided_law_needs_components_of_one_width_in_many_dimensions() -> None:
    mixture = GaussianMixture(SPACE.mixture.means, torch.linspace(0.1, 0.2, 24).double(), SPACE.mixture.weights)
    with pytest.raises(InputError, match="one width"):
        GuidedLaw(mixture, SPACE.plane, SPACE.mixture.weights, 2.0)


# --- samples -------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("blur", [1.0, 1.5])
def test_unguided_samples_have_the_law_that_the_network_knows(world: World, blur: float) -> None:
    knows = GaussianMixture(world.mixture.means, world.mixture.stds * blur, world.mixture.weights)
    known = World("known", knows, world.labels, world.plane)
    drawn = draw(world, "stack()", "a", blur=blur, steps=50, count=2000, batch=2000)
    exact = Drawn(known.law("a").draw(2000, 9), 0.0)
    of_both = [measured(known, one, "a", ["distance", "energy"], batch=400) for one in (drawn, exact)]
    assert of_both[0]["distance"].value == pytest.approx(of_both[1]["distance"].value, abs=0.03)
    assert of_both[0]["energy"].high < 0.004
    assert drawn.evaluations == 50


@pytest.mark.parametrize(
    "stack", ["cfg(3)", "icg(2, source='class')", "tsg(2, strength=0.5)", "cfg(2, against='positive@weak')"]
)
def test_samples_are_those_of_their_seeds(stack: str) -> None:
    whole = draw(PLANE, stack, "a", count=60, batch=60, steps=6)
    parts = draw(PLANE, stack, "a", count=20, batch=7, steps=6, seed=30)
    assert torch.allclose(whole.x[30:50], parts.x, atol=1e-5)
    assert torch.equal(whole.x, draw(PLANE, stack, "a", count=60, batch=60, steps=6).x)
    assert not torch.equal(whole.x[0], whole.x[1])


def test_samples_are_the_same_to_the_bit_by_more_threads_and_in_other_batches() -> None:
    """Perp-Neg's projection is on rounding where the prompt and the empty prompt agree, and shows every last digit."""
    how: dict[str, Any] = {"negatives": ["outer"], "count": 1500, "steps": 5}
    once = draw(SPACE, "perpneg(2)", "a", **how).x
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(draw(SPACE, "perpneg(2)", "a", **how, batch=500).x, once)
    finally:
        torch.set_num_threads(threads)


def test_negatives_positives_and_a_rule_as_an_object() -> None:
    plain = draw(PLANE, gs.CFG(2), "a", count=300, steps=8)
    less = draw(PLANE, "perpneg(2)", "a", negatives=["outer"], count=300, steps=8)
    more = draw(PLANE, "perpneg(2)", "a", positives=["outer"], count=300, steps=8)
    shares = [float(PLANE.posterior(one.x.double(), "outer").mean()) for one in (less, plain, more)]
    assert shares == sorted(shares)
    assert shares[2] - shares[0] > 0.3
    assert less.evaluations == more.evaluations == 24


@pytest.mark.parametrize(
    ("how", "said"), [({"count": 0}, "1 to 10000000 samples"), ({"blur": 0}, "blur"), ({"sampler": "dim"}, "ddim")]
)
def test_draws_that_cannot_be_are_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(GuidestackError, match=said):
        draw(PLANE, "cfg(2)", "a", **{"count": 10, **how})


# --- measures ------------------------------------------------------------------------------------------------------


@BOTH
def test_exact_draws_measure_what_nothing_wrong_measures(world: World) -> None:
    exact = Drawn(world.law("a").draw(8000, 4), 0.0)
    found = measured(world, exact, "a", ["energy", "coverage", "off", "norm", "variety", "agreement"], batch=1000)
    assert abs(found["energy"].value) < 0.002
    assert found["coverage"].value > 0.94
    assert found["norm"].value == pytest.approx(1, abs=0.01)
    assert found["variety"].value == pytest.approx(1, abs=0.01)
    everything = Drawn(world.law(ALL).draw(8000, 4), 0.0)
    assert measured(world, everything, ALL, ["off"], batch=1000)["off"].value == pytest.approx(0.01, abs=0.004)


@BOTH
def test_a_shift_is_a_distance_of_its_length(world: World) -> None:
    shift = 3 * torch.nn.functional.normalize(torch.arange(world.dimensions).double() - 1.3, dim=0)
    found = measured(world, Drawn(world.law("a").draw(4000, 2) + shift, 0.0), "a", ["distance"], batch=1000)
    assert found["distance"].value == pytest.approx(3, rel=0.12)  # the directions of 64 dimensions are a sample


def test_divergence_is_that_of_two_gaussians_and_likelihood_their_entropy() -> None:
    def single(std: float) -> World:
        mixture = GaussianMixture(torch.zeros(1, 2).double(), torch.tensor([std]).double(), torch.ones(1).double())
        return World("single", mixture, (frozenset({"a"}),), PLANE.plane)

    one, other = single(0.5), single(1.0)
    drawn = Drawn(one.law("a").draw(8000), 0.0)
    found = measured(other, drawn, "a", ["divergence", "likelihood"], batch=2000)
    assert found["divergence"].value == pytest.approx(0.25 - 1 + 2 * math.log(2), abs=0.04)
    assert found["likelihood"].value == pytest.approx(-0.25 - math.log(2 * math.pi), abs=0.02)


def test_energy_is_the_mean_over_pairs() -> None:
    to = Against(PLANE, PLANE.law("a"), "a")
    to.__dict__["reference"] = y = PLANE.law("a").draw(300, 8)
    x = PLANE.law("b").draw(200, 8)
    p, q = x @ to.directions, y @ to.directions

    def apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one[:, None] - other).abs().sum((0, 1)) / (len(one) * (len(other) - (one is other)))

    wanted = (2 * apart(p, q) - apart(p, p) - apart(q, q)).mean() / (2 / math.pi)
    assert MEASURES["energy"](x, to) == pytest.approx(float(wanted), rel=1e-9)


def test_measures_that_cannot_be_are_refused() -> None:
    drawn = Drawn(SPACE.law("a").draw(10), 1.0)
    for name, law, said in [
        ("divergence", "a", "two dimensions"),
        ("coverage", "a^2", "guided laws have none"),
        ("norms", "a", "did you mean 'norm'"),
        (AWAY, "a", "baseline"),
    ]:
        with pytest.raises(InputError, match=said):
            measured(SPACE, drawn, "a", [name], law)


def test_few_batches_have_no_interval() -> None:
    assert math.isnan(interval(np.array([1.0, 2.0, 3.0])).low)
    assert interval(np.array([2.0] * 4)) == (2, 2, 2)


# --- verdicts ------------------------------------------------------------------------------------------------------


RUNS, BATCHES = 300, 20


@pytest.mark.parametrize(("measure", "size"), [("norm", 20), ("agreement", 20), ("off", 50)])
def test_a_null_world_gives_five_false_findings_in_a_hundred_and_not_more(measure: str, size: int) -> None:
    """Two cells of one law, 300 runs of 20 batches each; a difference of any size is said to matter."""
    to = Against(PLANE, PLANE.law("a"), "a")
    of, than = (
        batched(Drawn(to.law.draw(RUNS * BATCHES * size, seed), 0.0), measure, to, size).reshape(RUNS, BATCHES)
        for seed in (1, 2)
    )
    found = [interval(row) for row in of - than]
    said = [verdict(one.low, one.high, "lower", 1e-12) for one in found]
    false = 1 - said.count(UNDECIDED) / RUNS
    assert 0.02 < false < 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)
    assert abs(said.count(HOLDS) - said.count(CONTRARY)) < 20
    # With a smallest difference that the intervals resolve, a difference is found nowhere.
    wide = max(one.high - one.low for one in found)
    assert {verdict(one.low, one.high, "lower", 2 * wide) for one in found} == {NOTHING}


# --- claims --------------------------------------------------------------------------------------------------------

CLAIM = """
words: Guidance costs.
paper: "2207.12598"
worlds: plane
cells:
  none: {stack: stack(), steps: 4}
  cfg: {stack: cfg(3), steps: 4}
rows:
  - {measure: evaluations, of: cfg, be: higher, than: none, matters: 1}
  - {measure: away, baseline: none, of: cfg, be: higher, than: none, matters: 0.1}
  - {measure: distance, law: a^3, of: cfg, be: same, than: exact, matters: 0.1}
"""


@pytest.fixture
def claim(tmp_path: Path) -> Any:
    path = tmp_path / "claim.yaml"
    path.write_text(CLAIM)
    return load_claim(str(path))


def test_a_claim_is_tested_and_its_samples_are_kept(
    claim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = findings(claim, Store(tmp_path, batches=4, size=100))
    assert [one.verdict for one in first] == [HOLDS, HOLDS, CONTRARY]
    assert overall(first) == "holds in 2 of 3 rows; row 3: does not hold"
    assert first[0].of == 8
    monkeypatch.setattr(of_worlds, "draw", None)
    assert findings(claim, Store(tmp_path, batches=4, size=100)) == first
    with pytest.raises(TypeError):
        findings(claim, Store(tmp_path, batches=5, size=100))


def test_linear_ag_is_fitted_on_the_world(tmp_path: Path) -> None:
    store, cfg = Store(tmp_path, batches=4, size=20), Cell(stack="cfg(2)", steps=8, sampler="ddim")
    made = store.drawn(PLANE, Cell(stack="linear_ag(cfg(2), coefficients='{fit}')", steps=8, sampler="ddim"), cfg)
    assert made.evaluations < 16
    assert [path.suffix for path in sorted(tmp_path.iterdir())].count(".safetensors") == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("matters: 1}", "}"), "rows: entry 1: give matters"),
        (("matters: 1}", "matters: 0}"), "rows: entry 1: matters"),
        (("measure: distance", "measure: distanc"), "did you mean 'distance'"),
        (("of: cfg, be: higher, than: none, matters: 1", "of: cg, be: higher, than: none, matters: 1"), "'cfg'"),
        (("cfg(3)", "cgf(3)"), "did you mean 'cfg'"),
        (("baseline: none, ", ""), "the measure away, and no other, has a baseline"),
        (("worlds: plane", "worlds: plain"), "did you mean 'plane'"),
        (("rows:", "row:"), "did you mean 'rows'"),
        (('paper: "2207.12598"', ""), "give paper"),
    ],
)
def test_a_claim_that_is_none_is_refused(changed: tuple[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "claim.yaml"
    path.write_text(CLAIM.replace(*changed))
    with pytest.raises(GuidestackError, match=said):
        load_claim(str(path))


def test_the_page_has_every_claim_and_every_row() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exact-world.md").read_text()
    for name in of_worlds.names():
        claim = load_claim(name)
        assert f"\n### {name}\n" in page
        assert all(f"| {row} | {world} |" in page for row in claim.rows for world in row.worlds or claim.worlds)
    assert all(f"| `{name}` |" in page for name in (*MEASURES, AWAY, EVALUATIONS))


# --- picture and command -------------------------------------------------------------------------------------------


@BOTH
def test_a_picture_shows_every_panel(world: World) -> None:
    panels = [Panel(f"panel {place}", world.law("a").draw(50), f"caption {place}") for place in range(6)]
    axes = picture(world, panels).axes
    assert [one.get_title() for one in axes] == [one.title for one in panels]
    assert [one.get_xlabel() for one in axes] == [one.caption for one in panels]
    assert [len(one.lines[0].get_xdata()) for one in axes] == [50] * 6


def test_the_contours_hold_their_share_of_the_law() -> None:
    from guidestack.evaluation.world.picture import _level

    at = torch.linspace(-3, 3, 400).double()
    place = torch.cartesian_prod(at, at)
    law = PLANE.law("a")
    level = _level(law.log_density(place).exp().numpy(), 0.9)
    assert float((law.log_density(law.draw(20_000)) > math.log(level)).double().mean()) == pytest.approx(0.9, abs=0.01)


def test_the_command_measures_draws_and_tells_json(command: Any, tmp_path: Path) -> None:
    picture_file = tmp_path / "world.png"
    arguments = ("world", "stack()", "cfg(3)", "--samples", 200, "--steps", 4, "--picture", picture_file)
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split()[:3] == ["evaluations", "distance", "coverage"]
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["exact", "stack()", "cfg(3)"]
    assert picture_file.read_bytes().startswith(b"\x89PNG")
    told = json.loads(command(*arguments[:-2], "--measure", "norm", "--json")[1])
    assert told["world"] == "plane"
    assert [one["evaluations"] for one in told["cells"]] == [0, 4, 8]
    assert set(told["cells"][2]["measures"]["norm"]) == {"value", "low", "high"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a stack"),
        (("cfg(2)", "--world", "plain"), "did you mean 'plane'"),
        (("cfg(2)", "--condition", "d"), "has no 'd'"),
        (("cfg(2)", "--measure", "norms"), "did you mean 'norm'"),
        (("cfg(2)", "--picture", "x.gif"), "ends in .png"),
        (("cfg(2)", "--claim", "cfg"), "drop the stacks"),
        (("--claim", "cfgg"), "did you mean 'cfg'"),
    ],
)
def test_the_command_refuses_in_one_line(command: Any, arguments: tuple[Any, ...], said: str) -> None:
    status, out, err = command("world", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_the_command_tests_a_claim(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claim.yaml"
    path.write_text(CLAIM)
    monkeypatch.setattr(of_worlds, "Store", lambda folder: Store(folder, batches=4, size=50))
    status, out, _ = command("world", "--claim", path, "--out", tmp_path / "kept")
    assert status == 0
    assert out.splitlines()[-1] == "holds in 2 of 3 rows; row 3: does not hold"
    assert len(list((tmp_path / "kept").iterdir())) == 2
    told = json.loads(command("world", "--claim", path, "--json")[1])
    assert [one["verdict"] for one in told["rows"]] == ["holds", "holds", "does not hold"]
