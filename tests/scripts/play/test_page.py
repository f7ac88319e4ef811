"""The page in a browser: each click fails a test when its control does nothing."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import guidestack as gs
from guidestack.pipelines.models.files import contents, read_recipe
from guidestack.pipelines.models.recipe import Recipe

from ... import browser
from ...browser import chromium as chromium

pytest.importorskip("nicegui")

RUN = "import sys; from guidestack.scripts.cli import main; sys.argv[0] = 'guidestack'; main()"
WICKED = '<img src=x onerror="document.title=\'broken\'"> "quoted" & <b>bold</b>'
"""A prompt that tries to be more than text."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command, running."""
    browser.installed()  # no server for nobody
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("play") / "log"
    words = [sys.executable, "-c", RUN, "play", "--no-browser", "--port", str(port), "--threads", "1"]
    plain = {name: value for name, value in os.environ.items() if "PYTEST" not in name}  # NiceGUI looks at it
    with log.open("w") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, env={**plain, "HF_HUB_OFFLINE": "1"})
    for _ in range(1200):
        if "Ctrl-C" in log.read_text() or process.poll() is not None:
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.wait(30)
    assert re.fullmatch(rf"guidestack play: http://127.0.0.1:{port}  \(Ctrl-C ends it\)\n", log.read_text())


class Page(browser.Page):
    """The page that plays."""

    def __init__(self, chromium: Any, address: str) -> None:
        super().__init__(chromium)
        self._address = address

    @property
    def address(self) -> str:
        return self._address

    def control(self, name: str) -> Any:
        return self.until(lambda: next(iter(self.all(f"[data-control='{name}']")), None))

    def controls(self, name: str) -> list[Any]:
        return self.all(f"[data-control='{name}']")

    def value(self, name: str) -> str:
        """What a control holds, read at once: controls are drawn anew between two commands."""
        script = "return [...document.querySelectorAll(arguments[0])].slice(0, 1).map((one) => String(one.value))"
        return str(self.until(lambda: self.js(script, f"[data-control='{name}']"))[0])

    def write(self, name: str, text: str, element: Any = None) -> None:
        """As a user does: over what stands there."""
        from selenium.webdriver.common.keys import Keys

        field = element or self.control(name)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", field)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def click(self, name: str) -> None:
        button = self.control(name)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
        button.click()

    def said(self, name: str) -> str:
        """What stands there; "" where there is no such place, which may be on its way."""
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText).join('')"
        return str(self.js(script, f"[data-said='{name}']"))

    def pick(self, text: str) -> None:
        """An item of the menu that is open."""
        item = self.until(lambda: next((one for one in self.all(".q-menu .q-item") if one.text == text), None))
        item.click()

    def menu(self, rule: str, text: str) -> None:
        button = self.one(f"section[aria-label='{rule}'] button[aria-label='Change this rule']")
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
        button.click()
        self.pick(text)

    def stack(self, text: str, letter: str = "A") -> None:
        self.until(lambda: self.value(f"{letter}/text") == text)

    def image(self, selector: str) -> Image.Image:
        """A finished picture, as it is downloaded."""
        from urllib.request import urlopen

        place = self.one(selector).get_attribute("src")
        with urlopen(place) as answer:
            return Image.open(io.BytesIO(answer.read()))


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Page]:
    one = Page(chromium, address)
    one.open()
    one.until(lambda: one.said("A/plan"))
    yield one
    complaints = [line for line in chromium.get_log("browser") if line["level"] not in ("DEBUG", "INFO")]
    assert complaints == []
    asked = one.js("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert [place for place in asked if not place.startswith((address, "data:"))] == []
    assert chromium.title == "guidestack play"


def test_text_and_controls_stay_in_step(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.write("A/text", "cfg(5) | rescale(0.5)")
    page.until(lambda: page.controls("1/phi") and page.value("0/scale") == "5")
    assert "50 evaluations a sample in 25 steps" in page.said("A/plan")

    page.write("1/phi", "0.25")
    page.stack("cfg(5) | rescale(0.25)")
    knob = page.control("0/scale/slider").find_element("css selector", "[tabindex='0']")
    knob.send_keys(Keys.ARROW_RIGHT)
    page.stack("cfg(5.2) | rescale(0.25)")
    page.until(lambda: page.value("0/scale") == "5.2")

    page.write("1/phi", "2")
    page.until(lambda: "phi must be between 0 and 1" in page.one("section[aria-label='rescale']").text)
    assert page.value("1/phi") == "2"  # what was typed is there
    assert page.value("A/text") == "cfg(5.2) | rescale(0.25)"
    page.until(lambda: page.said("A/plan") == "mend what is marked")
    page.write("1/phi", "1")
    page.stack("cfg(5.2) | rescale(1)")

    page.menu("rescale", "Remove")
    page.stack("cfg(5.2)")
    page.menu("cfg", "Wrap in during")
    page.stack("during(cfg(5.2), progress=(0.1, 0.8))")
    page.write("0/progress", "0, 0.4")
    page.stack("during(cfg(5.2), progress=(0, 0.4))")
    page.until(lambda: page.said("A/plan").startswith("35 evaluations"))
    adding = page.control("add-rule")
    page.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", adding)
    adding.send_keys("renorm")
    page.pick("renorm")
    page.stack("during(cfg(5.2), progress=(0, 0.4)) | renorm()")

    page.write("A/text", "cfgg(4)")
    page.until(lambda: "did you mean 'cfg'?" in page.one("section[aria-label='Stack A']").text)
    assert page.value("A/text") == "cfgg(4)"


def test_images_from_the_same_noise_with_the_files_that_make_them_again(page: Page, tmp_path: Path) -> None:
    page.write("prompt", WICKED)
    page.write("steps", "0")
    page.until(lambda: "0 is not in the range 1<=x<=1000" in page.one(".settings").text)
    page.click("make")
    page.until(lambda: "mend what is marked" in page.one("main").text)
    page.write("steps", "3")
    page.write("A/text", "cfg(3)")
    page.write("B/text", "cfg(3)")
    page.until(lambda: page.said("B/plan").startswith("6 evaluations a sample in 3 steps"))
    page.click("make")
    page.until(lambda: len(page.all("[data-picture] img")) == 2)
    one, other = (page.image(f"[data-picture='{letter}'] img") for letter in "AB")
    assert one.tobytes() == other.tobytes()
    recipe = Recipe.read(read_recipe(_saved(one, tmp_path)), Path("picture"))
    assert (recipe.prompt, recipe.guidance, recipe.steps) == (WICKED, "cfg(3)", 3)
    link = page.one("[data-picture='A'] a")
    assert link.get_attribute("download") == recipe.filename
    assert len(page.all("svg[aria-label*='Effective scale']")) == 2
    assert re.fullmatch(r"6 evaluations, [0-9.]+ s: cfg\(3\), seed 0", page.said("A/result"))

    page.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }")  # a headless one has none
    copied = {}
    for what in ("Text", "Command", "Python"):
        page.js("window.copied = ''")
        page.click(f"A/copy/{what}")
        copied[what] = page.until(lambda: page.js("window.copied"))
    assert copied["Text"] == "cfg(3)"
    assert shlex.split(copied["Command"])[-1] == WICKED
    compile(copied["Python"], "copied", "exec")


def _saved(image: Image.Image, folder: Path) -> Path:
    path = folder / "picture.png"
    path.write_bytes(contents(image, "png", json.loads(image.text["guidestack"])))  # type: ignore[attr-defined]
    return path


def test_stacks_come_and_go_a_run_stops_and_an_image_is_taken_over(page: Page, tmp_path: Path) -> None:
    page.click("add")
    page.until(lambda: len(page.all("section[aria-label^='Stack']")) == 3)
    page.click("drop")
    page.until(lambda: len(page.all("section[aria-label^='Stack']")) == 2)

    page.write("steps", "900")
    page.until(lambda: "900 steps" in page.said("A/plan"))
    page.click("make")
    page.until(lambda: page.said("A/result").startswith("step "))
    page.click("stop")
    page.until(lambda: (page.said("A/result"), page.said("B/result")) == ("stopped", "stopped"))

    told = gs.parse("apg(4, eta=0.5)")
    recipe = Recipe("rose", "thorns", "", str(told), "euler", 7, 11, None, "float32", model=_model(), versions={})
    path = tmp_path / "rose.png"
    path.write_bytes(contents(Image.new("RGB", (64, 64)), "png", recipe.as_json()))
    page.one("input[type=file]").send_keys(str(path))
    page.stack(str(told))
    shown = {name: page.value(name) for name in ("prompt", "negative", "steps", "seed")}
    assert shown == {"prompt": "rose", "negative": "thorns", "steps": "7", "seed": "11"}
    assert page.value("sampler") == "euler"
    other = tmp_path / "other.png"
    other.write_bytes(contents(Image.new("RGB", (8, 8)), "png"))
    page.one("input[type=file]").send_keys(str(other))
    page.until(lambda: "other.png does not say how it was made" in page.one("main").text)


def _model() -> dict[str, str]:
    from guidestack.pipelines.models.loading import identity_of

    return identity_of(None)


def give(page: Page, name: str, path: Path) -> None:
    page.one(f"[data-control='file/{name}'] input[type=file]").send_keys(str(path))


def plain(path: Path, side: int = 64, opacity: int = 255) -> Path:
    Image.new("RGBA", (side, side), (200, 60, 40, opacity)).save(path)
    return path


def test_images_are_made_from_files(page: Page, tmp_path: Path) -> None:
    page.write("steps", "4")
    assert not page.control("strength").is_displayed()
    give(page, "image", plain(tmp_path / "start (1).png"))
    page.until(lambda: page.control("strength").is_displayed())
    assert "start-1-.png" in page.one("section[aria-label='Files']").text
    page.until(lambda: "images begin from a picture" in page.one("section[aria-label='Stack A']").text)
    page.write("strength", "2")
    page.until(lambda: "is not in the range 0<x<=1" in page.one(".settings").text)
    page.write("strength", "0.5")
    page.until(lambda: "the last 50% of these steps" in page.one("section[aria-label='Stack A']").text)
    page.click("make")
    page.until(lambda: len(page.all("[data-picture] img")) == 2)
    recipe = Recipe.read(read_recipe(_saved(page.image("[data-picture='A'] img"), tmp_path)), Path("picture"))
    assert (set(recipe.pictures), recipe.strength) == ({"image"}, 0.5)

    give(page, "mask", plain(tmp_path / "small.png", 32))
    page.until(lambda: page.said("file/mask").startswith("--mask small.png has 32x32 pixels"))
    page.until(lambda: page.said("A/plan") == "mend what is marked")
    page.click("file/mask/drop")
    page.until(lambda: page.said("A/plan").startswith("8 evaluations"))

    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"{}")
    give(page, "lora", broken)
    page.until(lambda: page.controls("file/lora0/scale"))
    page.write("file/lora0/scale", "much")
    page.until(lambda: "a scale is a number" in page.said("file/lora0"))
    page.write("file/lora0/scale", "0.5")
    page.until(lambda: page.said("file/lora0") == "")
    page.click("make")
    page.until(lambda: page.said("file/lora0").startswith("--lora 'broken.safetensors' cannot be read as safe"))
    page.click("file/lora0/drop")
    page.until(lambda: not page.controls("file/lora0/scale"))


def test_what_a_stack_does_not_go_with_is_said_beside_it(page: Page, tmp_path: Path) -> None:
    page.write("A/text", "cfg(3) | langevin()")
    page.until(lambda: "stack A: langevin() moves samples between two steps" in page.one(".settings").text)
    assert "it does not run with this sampler" in page.one("section[aria-label='Stack A']").text
    page.click("make")
    page.until(lambda: "mend what is marked" in page.one("main").text)
    assert "moves samples" in page.one(".settings").text

    page.write("A/text", "cfg(3) | tfg('known', mu=0.3)")
    page.until(lambda: page.said("file/objective known").startswith("the objective 'known' takes a picture"))
    assert "moves samples" not in page.one(".settings").text
    assert page.said("A/plan") == "mend what is marked"
    give(page, "objective known", plain(tmp_path / "small.png", 32, opacity=128))
    page.until(lambda: "is for 32x32 pixels, and the run makes 64x64" in page.said("file/objective known"))
    give(page, "objective known", plain(tmp_path / "known.png", opacity=128))
    page.until(lambda: page.said("A/plan").startswith("50 evaluations"))
    assert page.said("file/objective known") == ""
    page.write("A/text", "cfg(3)")
    page.until(lambda: not page.controls("file/objective known"))


def test_a_grid_over_two_parameters(page: Page) -> None:
    page.write("steps", "2")
    page.write("A/text", "cfg(3) | rescale(0.5)")
    page.until(lambda: page.said("A/plan").startswith("4 evaluations"))
    page.write("grid/across/values", "2:4:2")
    page.click("grid/down")
    page.pick("seed")
    page.write("grid/down/values", "0, -1")
    time.sleep(0.5)  # what was typed is on its way
    page.click("grid/make")
    page.until(lambda: "-1 is not in the range" in page.said("grid"))
    page.write("grid/down/values", "0, 1")
    time.sleep(0.5)
    page.click("grid/make")
    page.until(lambda: len(page.all(".sheet img")) == 4)
    heads = [one.text for one in page.all(".sheet th")]
    assert heads == ["", "cfg.scale = 2", "cfg.scale = 4", "seed = 0", "seed = 1"]
    assert len({page.image(f".sheet tr:nth-child({row}) td:nth-of-type({column}) img").tobytes()
                for row in (2, 3) for column in (1, 2)}) == 4  # fmt: skip


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_nothing_is_wider_than_the_screen(page: Page, width: int, dark: bool) -> None:
    page.open(width, 800, dark)
    page.until(lambda: page.said("A/plan"))
    page.until(lambda: page.js("document.body.classList.contains('body--dark')") == dark)
    assert page.js("document.documentElement.scrollWidth") <= width
