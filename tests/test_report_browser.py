"""The HTML report in a browser: opened, clicked through, looked at in light and dark."""

# ruff: noqa: F811 - pytest hands a fixture over as an argument of its name

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphprune as gp
from tests.test_report import data_of, digits_run, hostile  # noqa: F401 - a fixture is used by its name

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install graphprune[test]")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(2)
    yield driver
    driver.quit()


class Page:
    """A report in the browser, by what a reader does."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        driver.get_log("browser")
        driver.get(path.resolve().as_uri())

    def all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", css))

    def one(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def open(self, name: str) -> None:
        self.one(f"#tab-{name}").click()
        assert self.one(f"#{name}").is_displayed()

    def search(self, name: str, text: str) -> None:
        field = self.one(f"#{name}-search")
        self.driver.execute_script("arguments[0].value = ''", field)
        field.send_keys(text)

    def log(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


def test_it_is_clicked_through(browser: Any, digits_run: tuple[Path, Path]) -> None:
    page = Page(browser, digits_run[0])
    assert page.one("#name").text == "digits.onnx"
    summary = page.one("#summary").text
    for text in ("MACs kept", "Proved.", "accuracy", "same best class", "recover"):
        assert text in summary
    # Every tab shows its part alone, by mouse and by keyboard.
    tabs = [tab.get_attribute("id").removeprefix("tab-") for tab in page.all("[role=tab]")]
    assert tabs == ["summary", "widths", "scores", "recovery", "frozen", "graph", "recipe"]
    for name in tabs:
        page.open(name)
        assert [s.get_attribute("id") for s in page.all("main > section") if s.is_displayed()] == [name]
        assert page.one(f"#tab-{name}").get_attribute("aria-selected") == "true"
        assert not re.search(r"\[object|\bfalse\b|undefined|\bnull\b|NaN", page.one(f"#{name}").text)
    page.one("#tab-recipe").send_keys("\ue014")  # right arrow: round to the first
    assert page.one("#summary").is_displayed() and browser.switch_to.active_element.get_attribute("id") == "tab-summary"

    page.open("widths")
    assert len(page.all("#widths .row")) == 6
    page.one("#widths select").send_keys("width")
    assert page.one("#widths .row .who").text.startswith("g2")
    page.search("widths", "block3.first")
    assert [row.text.split()[1] for row in page.all("#widths .row")] == ["block2.project.conv", "block3.first.conv"]

    page.open("scores")
    assert len(page.all("#scores .tile")) == 6 and page.all("#scores line.cut")
    page.open("recovery")
    assert "block1.first.conv" in page.one("#recovery").text
    page.open("frozen")
    assert "kernel axis of Conv" in page.one("#frozen").text
    page.search("frozen", "head.weight")
    assert all("head.weight" in code.text for code in page.all("#frozen td:first-child code"))
    assert page.all("#frozen mark") and "kernel axis" not in page.one("#frozen").text
    browser.execute_script("location.hash = '#/recipe'")
    assert page.one("#recipe").is_displayed() and browser.execute_script("return scrollY") == 0
    assert "--pass l1 --pass recover" in page.one("#command").text
    assert page.log() == []


def test_the_graph_zooms_searches_and_shows_members(browser: Any, digits_run: tuple[Path, Path]) -> None:
    page = Page(browser, digits_run[0])
    data = data_of(digits_run[0].read_text())
    page.open("graph")
    assert len(page.all("#graph g.box")) == len(data["graph"]["boxes"])

    # A click on a width picks its group: its members are listed, its layers stand out, the rest does not.
    page.one("#graph g.box[data-box='1'] g.pill").click()
    group = data["groups"][0]
    shown = [item.text for item in page.all("#graph .members .mono")]
    assert shown == [name for name, *_ in group["members"]]
    on = {int(box.get_attribute("data-box")) for box in page.all("#graph g.box.on")}
    assert set(group["boxes"]) <= on < set(range(len(data["graph"]["boxes"])))
    assert page.all("#graph path.on")
    assert [b.get_attribute("data-id") for b in page.all("#graph .list button[aria-pressed=true]")] == ["0"]
    # From the list, too, and a layer tells its groups.
    page.one("#graph .list button[data-id='1']").click()
    assert "Group 1" in page.one("#graph .detail h3").text
    page.one("#graph g.box[data-box='1'] text").click()
    assert page.one("#graph .detail h3").text == data["graph"]["boxes"][1]["name"]

    # Whatever is picked, words are shown.
    for i in range(len(data["graph"]["boxes"])):
        browser.execute_script(f"document.querySelector('#graph g.box[data-box=\"{i}\"]').dispatchEvent(new MouseEvent('click'))")
        text = page.one("#graph .detail").text
        assert text.startswith(data["graph"]["boxes"][i]["name"]) and not re.search(r"\[object|false|undefined|null|NaN", text)

    transform = "return document.querySelector('#graph svg.drawing > g').getAttribute('transform')"
    scale = lambda: float(re.search(r"scale\((.*)\)", browser.execute_script(transform))[1])  # type: ignore[index]  # noqa: E731
    start = scale()
    page.one("#graph [aria-label='Zoom in']").click()
    assert scale() > start
    page.one("#graph [aria-label='Zoom out']").click()
    assert scale() == pytest.approx(start)
    drawing, before = page.one("#graph svg.drawing"), browser.execute_script(transform)
    drawing.send_keys("\ue015")  # arrow down moves
    assert browser.execute_script(transform) != before and scale() == pytest.approx(start)
    before = browser.execute_script(transform)
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).move_to_element_with_offset(drawing, -200, 0).click_and_hold().move_by_offset(30, 40).release().perform()
    assert browser.execute_script(transform) != before

    page.search("graph", "block3.first")
    assert 0 < len(page.all("#graph g.box.found")) < len(data["graph"]["boxes"])
    assert len([b for b in page.all("#graph .list button") if b.is_displayed()]) == 2
    page.one("#graph-search").send_keys("\ue007")  # enter goes to the first hit
    assert "block3.first" in page.one("#graph .detail").text
    # A chart leads to the graph.
    page.open("widths")
    page.all("#widths .row button")[3].click()
    assert page.one("#graph").is_displayed() and "Group 3" in page.one("#graph .detail h3").text
    assert page.log() == []


def test_it_is_light_and_dark(browser: Any, digits_run: tuple[Path, Path]) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("dark", "light"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        page = Page(browser, digits_run[0])
        seen[scheme] = browser.execute_script(paper)
        assert contrast(browser, "body") > 7 and contrast(browser, "#provenance") > 4.5
    assert seen["light"] != seen["dark"]
    page.one("#theme").click()
    assert browser.execute_script(paper) == seen["dark"] and page.one("#theme").text == "Light"
    page.one("#theme").click()
    assert browser.execute_script(paper) == seen["light"]
    assert page.log() == []


def contrast(driver: Any, css: str) -> float:
    """Contrast of an element's text with the page, by WCAG 2."""
    colours = driver.execute_script(
        "return [getComputedStyle(document.querySelector(arguments[0])).color, getComputedStyle(document.body).backgroundColor]", css)  # fmt: skip

    def luminance(text: str) -> float:
        parts = np.asarray([float(part) for part in re.findall(r"[\d.]+", text)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def test_hostile_names_are_shown_as_they_are(browser: Any, tmp_path: Path) -> None:
    source = tmp_path / "<img src=x onerror=bad()>.onnx"
    onnx.save(hostile(), source)
    page = Page(browser, gp.prune(source, rate=0.5).report(tmp_path / "o.html"))
    assert page.one("#name").text == source.name
    for name in ("widths", "scores", "frozen", "graph", "recipe"):
        page.open(name)
    page.open("graph")
    page.one("#graph .list button").click()
    assert "<script>window.bad=1</script>" in page.one("#graph .members").text
    assert not page.all("img") and browser.execute_script("return window.bad") is None
    assert page.log() == []


def test_it_fits_a_narrow_window(browser: Any, digits_run: tuple[Path, Path]) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False})
    try:
        page = Page(browser, digits_run[0])
        for tab in page.all("[role=tab]"):
            tab.click()
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 400, tab.text
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
