"""The page in a browser: drawn, silent, offline, as narrow as a phone and as dark as wanted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reading import Trainings

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not (CHROMIUM.is_file() and DRIVER.is_file()):
        pytest.skip("Chromium is not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def show(browser: Any, page: Path, width: int = 1280, scheme: str = "light", media: str = "screen") -> None:
    """Open a page at a width, in a colour scheme, and wait until its charts are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(
        lambda one: one.execute_script("return document.documentElement.dataset.charts") == "drawn"
    )


def brightness(browser: Any, what: str, of: str) -> float:
    """Mean of the red, green and blue of a computed colour, 0 to 255."""
    style = f"return getComputedStyle(document.querySelector({what!r}))[{of!r}]"
    red, green, blue = browser.execute_script(style).partition("(")[2].rstrip(")").split(",")[:3]
    return (float(red) + float(green) + float(blue)) / 3


def test_every_chart_is_drawn_without_a_word_or_a_request(browser: Any, trainings: Trainings) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    show(browser, trainings.page)
    sizes = browser.execute_script(
        """return [...document.querySelectorAll(".chart")].map(chart => {
             const box = chart.querySelector("svg").getBoundingClientRect();
             return [box.width, box.height, chart.querySelectorAll("svg path, svg text").length];
           });"""
    )
    assert len(sizes) > 40
    assert all(width > 100 and height > 50 and marks > 4 for width, height, marks in sizes)
    assert browser.get_log("browser") == []
    events = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {trainings.page.as_uri()}


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_is_never_wider_than_the_window(browser: Any, trainings: Trainings, width: int) -> None:
    show(browser, trainings.page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = """return [...document.querySelectorAll("main *")].filter(one =>
        !one.closest(".scroll, pre, svg") && one.getBoundingClientRect().right > innerWidth + 1).length"""
    assert browser.execute_script(outside) == 0


def test_dark_is_dark_and_paper_is_light(browser: Any, trainings: Trainings) -> None:
    label = ".chart svg .role-axis-label text"
    show(browser, trainings.page)
    assert brightness(browser, "body", "backgroundColor") > 240
    assert brightness(browser, label, "fill") < 60
    show(browser, trainings.page, scheme="dark")
    assert brightness(browser, "body", "backgroundColor") < 40
    assert brightness(browser, label, "fill") > 200
    show(browser, trainings.page, scheme="dark", media="print")
    assert brightness(browser, "body", "backgroundColor") > 240
    assert brightness(browser, label, "fill") < 60


def test_charts_fit_on_paper(browser: Any, trainings: Trainings) -> None:
    """Drawn on a wide screen, then printed: 680 pixels are about the inside of A4."""
    show(browser, trainings.page)
    metrics = {"width": 680, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    beyond = """return [...document.querySelectorAll("figure svg")].filter(one =>
        one.getBoundingClientRect().right > innerWidth + 1).length"""
    assert browser.execute_script(beyond) == 0


def test_names_do_nothing(browser: Any, trainings: Trainings) -> None:
    """An alert would block every later command."""
    show(browser, trainings.page)
    assert browser.execute_script("return document.scripts.length") == 2
    assert browser.execute_script("return document.images.length") == 0
    assert "alert(2)" in browser.execute_script("return document.querySelector('tbody').closest('main').textContent")
