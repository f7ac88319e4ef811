"""The report in a browser, as who reads it meets it: headless Chromium, by Selenium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import browser
from ..browser import chromium as chromium
from .common import SAMPLES
from .reported import WICKED, data_of


class Page(browser.Page):
    """The report in the browser."""

    def __init__(self, chromium: Any, path: Path) -> None:
        super().__init__(chromium)
        self.path = path

    @property
    def address(self) -> str:
        return self.path.as_uri()

    def open(self, width: int = 1280, height: int = 900, dark: bool = False, whole: bool = True) -> Page:
        """Open the page; with all rows of images, and what is folded unfolded, unless told otherwise."""
        super().open(width, height, dark)
        if whole:
            self.js("document.querySelectorAll('details.fold').forEach((one) => { one.open = true; })")
            self.js("document.getElementById('more').hidden || document.getElementById('more').click()")
        return self

    def images(self) -> list[str]:
        return self.js("return [...document.querySelectorAll('#grid img')].map((image) => image.alt)")

    def headings(self) -> list[str]:
        return self.js("return [...document.querySelectorAll('#grid thead th')].map((one) => one.textContent)")

    def rows(self) -> list[str]:
        return self.js("return [...document.querySelectorAll('#grid .caption')].map((one) => one.textContent)")

    def record(self) -> dict[str, str]:
        return self.js(
            "return Object.fromEntries([...document.querySelectorAll('#record dt')].map((term) => "
            "[term.textContent, term.nextElementSibling.textContent]))"
        )


@pytest.fixture
def page(chromium: Any, reported: Path) -> Iterator[Page]:
    yield Page(chromium, reported / "report.html")
    complaints = [one for one in chromium.get_log("browser") if one["level"] not in ("DEBUG", "INFO")]
    assert complaints == []


@pytest.mark.parametrize(("width", "side"), [(1280, 200), (400, 88)])
def test_the_first_screen_is_a_sentence_and_large_images(page: Page, width: int, side: int) -> None:
    page.open(width=width, whole=False)
    sentence = page.one(".conclusion").text
    assert sentence == "Too few images to conclude anything but by looking: 5 images a cell, of 5 prompts."
    order = page.js("return [...document.querySelectorAll('main > section')].map((one) => one.id)")
    assert order == ["images", "plots", "findings", "numbers", "again"]
    assert len(page.rows()) == 3
    top, wide = page.js(
        "const box = document.querySelector('#grid img').getBoundingClientRect(); return [box.top, box.width]"
    )
    assert top < 620  # of a screen of 900
    assert wide == pytest.approx(side, abs=10)
    page.one("#more").click()
    assert len(page.rows()) == 5


def test_statistics_are_folded_until_a_link_leads_to_them(page: Page) -> None:
    page.open(whole=False)
    assert not page.one(".cells").is_displayed()
    assert not page.one(".verdicts").is_displayed()
    page.one("nav a[href='#numbers']").click()
    assert page.one(".cells").is_displayed()
    assert not page.one(".verdicts").is_displayed()


def test_it_opens_and_asks_nobody(page: Page) -> None:
    page.open()
    assert page.browser.title == "run · guidestack report"
    assert page.js("document.querySelectorAll('#grid img').length") == SAMPLES
    asked = page.js("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert [one for one in asked if not one.startswith("data:")] == []
    page.until(lambda: page.js("[...document.images].filter((one) => one.src).every((one) => one.naturalWidth > 0)"))
    assert page.js("document.documentElement.scrollWidth") <= 1280


def test_a_prompt_is_text_whatever_it_says(page: Page) -> None:
    page.open()
    assert page.browser.title != "broken"
    assert any(row.startswith(WICKED) for row in page.rows())
    assert page.all("#grid b") == []


def test_one_metric_is_shown_at_a_time(page: Page) -> None:
    page.open()

    def seen() -> list[str]:
        return [one.get_attribute("data-metric") for one in page.all("figure") if one.is_displayed()]

    assert set(seen()) == {"saturation"}
    page.choose("#metric", "contrast")
    assert set(seen()) == {"contrast"}
    page.choose("#metric", "")
    assert set(seen()) == {"saturation", "contrast"}


def test_a_point_says_its_numbers(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page.open()
    point = page.all("figure .point.s0")[1]
    page.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", point)
    ActionChains(page.browser).move_to_element(point).perform()
    page.until(lambda: page.one("#tip").is_displayed())
    said = page.one("#tip").text
    assert re.match(r"(cfg|apg)\(5\)\neffective scale [45][.\d]*\nsaturation 0\.\d+ \[", said)  # one lies on the other
    ActionChains(page.browser).move_to_element(page.one("h2#plots-title")).perform()
    page.until(lambda: not page.one("#tip").is_displayed())


def test_the_choice_of_axes_changes_the_grid(page: Page) -> None:
    page.open()
    assert page.headings() == ["cfg(2)", "cfg(5)", "apg(2)", "apg(5)"]
    assert len(page.rows()) == 5
    first = page.images()
    page.choose("#choose-columns", "w")
    assert page.headings() == ["w 2", "w 5"]
    assert len(page.images()) == 10
    assert all("cfg(" in alt for alt in page.images())
    page.choose("#choose-stack", "apg({w}, eta=0)")
    assert all("apg(" in alt for alt in page.images())
    page.choose("#choose-rows", "stack")
    assert page.rows() == ["cfg({w})", "apg({w}, eta=0)"]
    assert [alt.rpartition(", ")[2] for alt in page.images()] == ["cfg(2)", "cfg(5)", "apg(2)", "apg(5)"]
    page.choose("#choose-prompt-and-seed", "2/5")
    assert all(alt.startswith("sea, seed 5") for alt in page.images())
    page.choose("#choose-columns", "cell")  # all axes at once: the samples are what is left
    assert page.js("document.getElementById('choose-rows').value") == "prompt and seed"
    assert page.images() == first
    page.choose("#choose-rows", "cell")
    assert page.rows() == ["cfg(2)", "cfg(5)", "apg(2)", "apg(5)"]
    assert len(page.headings()) == 5


def test_every_row_has_pictures_where_stacks_have_axes_of_their_own(
    page: Page, model_folder: Path, tmp_path: Path
) -> None:
    from guidestack.evaluation.report.report import report
    from guidestack.evaluation.store.folder import RunFolder

    from .common import run

    keys = {"stack": ["stack()", "cfg({w})", "apg({v}, eta=0)"], "axes": {"w": [2, 5], "v": [3, 6]}}
    run(model_folder, tmp_path / "run", prompts=["red", "sea"], **keys)
    report(RunFolder(tmp_path / "run"))
    page.path = tmp_path / "run" / "report.html"
    page.open()
    page.choose("#choose-rows", "stack")
    assert page.rows() == ["stack()", "cfg({w})", "apg({v}, eta=0)"]
    assert [alt.rpartition(", seed ")[2].partition(", ")[2] for alt in page.images()] == [
        "stack()", "stack()", "cfg(2)", "cfg(2)", "apg(3)", "apg(3)",
    ]  # fmt: skip
    page.choose("#choose-v", "6")
    assert page.images()[-1].endswith("apg(6)")
    page.choose("#choose-columns", "w")  # a row that has no w says that it has none
    assert page.headings() == ["w 2", "w 5"]
    assert page.rows()[1] == "cfg({w})"
    assert page.rows()[2] == "apg({v}, eta=0) (has no w: the same images)"
    assert all(page.images())
    page.choose("#choose-rows", "prompt and seed")  # of what is left to choose, a stack that has w
    assert [alt.rpartition(", ")[2] for alt in page.images()] == ["cfg(2)", "cfg(5)"] * 2
    page.choose("#choose-columns", "v")
    assert [alt.rpartition(", ")[2] for alt in page.images()] == ["apg(3)", "apg(6)"] * 2


def test_numbers_of_a_record_are_written_as_in_the_tables(page: Page) -> None:
    from guidestack.evaluation.report.words import number

    page.open()
    page.one("#grid button[data-row='1'][data-column='0']").click()
    record = page.record()
    assert record["across"] == "0"
    # a page whose numbers are very small, below 0, or great
    text = page.path.read_text()
    data = data_of(text)
    sample = next(one for one in data["samples"] if one["p"] == 1)
    found = re.search(rf'"a":"{sample["a"]}".*?"w":([^,]+),.*?"m":\[([^,]+),([^\]]+)\]', text)
    assert found is not None
    end = found[0].replace(f'"w":{found[1]}', '"w":-2.5').replace(f"[{found[2]},{found[3]}]", "[0.00012345,12345.6]")
    other = page.path.with_name("other.html")
    other.write_text(text.replace(found[0], end))
    try:
        page.path = other
        page.open()
        page.one("#grid button[data-row='1'][data-column='0']").click()
        record = page.record()
    finally:
        other.unlink()
    said = [record[name] for name in ("effective scale", "saturation", "contrast")]
    assert said == ["−2.5", number(0.00012345), number(12345.6)] == ["−2.5", "1.23e-04", "1.23e+04"]


def test_the_record_of_an_image_can_be_read(page: Page) -> None:
    from selenium.webdriver import Keys

    page.open()
    data = data_of(page.path.read_text())
    page.one("#grid button[data-row='1'][data-column='0']").click()
    assert page.one("#viewer").is_displayed()
    first = page.record()
    sample = next(one for one in data["samples"] if one["p"] == 1 and data["cells"][one["c"]]["stack"] == "cfg(2)")
    assert (first["prompt"], first["stack"], first["seed"]) == ("red", "cfg(2)", str(sample["s"]))
    assert (first["address"], first["evaluations"]) == (sample["a"], "6")
    assert float(first["effective scale"]) == pytest.approx(2, abs=1e-3)
    assert float(first["saturation"]) == sample["m"][0]
    assert first["make it again"].startswith("guidestack generate --like ")
    assert first["make it again"].endswith(f"{sample['a']}.png")
    assert page.js("document.getElementById('large').src") == sample["d"]
    assert page.one("#trace svg").get_attribute("aria-label").startswith("Effective scale at each of 3 steps: 2")
    page.press(Keys.ARROW_RIGHT)
    assert page.record()["stack"] == "cfg(5)"
    page.press(Keys.ARROW_UP)
    assert (page.record()["prompt"], page.record()["stack"]) == (WICKED, "cfg(5)")
    page.press(Keys.ARROW_UP)  # there is nothing above
    assert page.record()["prompt"] == WICKED
    page.one("#right").click()
    assert page.record()["stack"] == "apg(2)"
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.one("#viewer").is_displayed())


def test_everything_is_within_reach_of_the_keyboard(page: Page) -> None:
    from selenium.webdriver import Keys

    page.open()
    assert page.js("return [...document.images].filter((one) => one.src && !one.alt).length") == 0
    nameless = (
        "return [...document.querySelectorAll('button, select, a')].filter((one) => !(one.textContent.trim() || "
        "one.getAttribute('aria-label') || one.querySelector('img[alt]') || one.closest('label'))).length"
    )
    assert page.js(nameless) == 0
    page.js("document.querySelector('#grid button').focus()")
    page.press(Keys.ENTER)
    assert page.one("#viewer").is_displayed()
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.one("#viewer").is_displayed())
    assert page.js("document.activeElement === document.querySelector('#grid button')")
    page.js("document.querySelector('#choose-columns').focus()")
    page.choose("#choose-columns", "w")
    assert page.js("document.activeElement.id") == "choose-columns"  # the controls are made anew, the focus stays
    levels = page.js("return [...document.querySelectorAll('main h2, main h3')].map((one) => +one.tagName[1])")
    assert levels[0] == 2
    assert set(levels) == {2, 3}


CONTRAST = """
const light = (text) => {
  const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255)
    .map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = light(getComputedStyle(document.body).backgroundColor);
const found = {};
for (const selector of ["body", ".lede", ".soft", ".fine", "a", "thead th", ".interval", ".kicker",
  ".plot text", "figure .point.s0 use", "figure .point.s1 use", ".warn, .flag, dt"]) {
  const element = document.querySelector(selector);
  const style = getComputedStyle(element);
  const own = light(element.matches("use") ? style.stroke : element.ownerSVGElement ? style.fill : style.color);
  found[selector] = (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05);
}
return found;
"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read_in_light_and_dark(page: Page, dark: bool) -> None:
    page.open(dark=dark)
    ground = page.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in ground[4:-1].split(",")) < 150) == dark
    contrasts = page.js(CONTRAST)
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}


def test_the_colours_can_be_chosen(page: Page) -> None:
    page.open()

    def colours() -> tuple[str, str, str]:
        return (
            page.one("#theme").text,
            page.js("getComputedStyle(document.body).backgroundColor"),
            page.js("getComputedStyle(document.querySelector('.point.s0 use')).stroke"),
        )

    auto = colours()
    page.one("#theme").click()
    light = colours()
    page.one("#theme").click()
    dark = colours()
    assert (auto[0], light[0], dark[0]) == ("Colours: auto", "Colours: light", "Colours: dark")
    assert auto[1:] == light[1:]
    assert dark[1] != light[1]
    assert dark[2] != light[2]
    page.browser.refresh()
    assert colours() == dark  # it is remembered
    page.open(dark=True)
    assert colours()[1] == dark[1]
    page.one("#theme").click()
    assert colours()[1] == light[1]


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_scrolls_sideways_but_tables(page: Page, width: int) -> None:
    page.open(width=width, height=740)
    page.choose("#metric", "")
    assert page.js("document.documentElement.scrollWidth") <= width
    wide = "one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.scroll, pre, svg, [hidden]')"
    shown = "one.outerHTML.slice(0, 80)"
    beyond = page.js(f"return [...document.querySelectorAll('main *')].filter((one) => {wide}).map((one) => {shown})")
    assert beyond == []
    page.one("#grid button").click()
    box = page.js("return document.getElementById('viewer').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["right"] <= width
    assert page.js("const one = document.getElementById('viewer'); return one.scrollWidth <= one.clientWidth")


def test_images_that_are_links_come_from_the_folder(page: Page, reported: Path) -> None:
    from guidestack.evaluation.report.gather import gather
    from guidestack.evaluation.report.page import page as made
    from guidestack.evaluation.store.folder import RunFolder

    linked = reported / "linked.html"
    linked.write_text(made(gather(RunFolder(reported)), budget=0))
    try:
        page.path = linked
        page.open()
        ready = "[...document.querySelectorAll('#grid img')].every((one) => one.naturalWidth === 16)"
        page.js("[...document.querySelectorAll('#grid img')].forEach((one) => { one.loading = 'eager'; })")
        page.until(lambda: page.js(ready))
        assert page.js("document.querySelector('#grid img').getAttribute('src')").startswith("images/")
        page.one("#grid button").click()
        page.until(lambda: page.js("document.getElementById('large').naturalWidth === 16"))
    finally:
        linked.unlink()
