"""The page of results in a real browser, headless: what a reader clicks, types, points at, prints and hears.

One browser serves all tests of a process. Without Chromium and its driver they skip: `apt-get install chromium chromium-driver`.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests.reports.test_changes_html import PAIRED, WORSE, change, comparison
from tests.test_page import EVIL, PIXEL, counted, rendered, timed, written
from vitbench.reports import changes_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--window-size=1280,900",
        # Should the page ask for anything all the same, it finds nobody.
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def results_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two kinds, two models that scale, names from outside, a picture and changes."""
    folder = tmp_path_factory.mktemp("results")
    written(
        folder / "a.json",
        counted("small", macs=900 * 10**6),
        counted("large", macs=10**10),
        *(
            timed(model, side, per_s=10**5 / side, samples=side)
            for model in ("small", "large")
            for side in (64, 128, 224)
        ),
        *(timed(name, per_s=1 + place, note=name) for place, name in enumerate(EVIL)),
    )
    (folder / "a.png").write_bytes(PIXEL)
    page = folder / "report.html"
    page.write_text(rendered(folder, changes=comparison(change(), PAIRED, WORSE)), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def changes_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("changes") / "changes.html"
    page.write_text(changes_html.render(comparison(change(), PAIRED, WORSE, commands=("x " * 200,))), encoding="utf-8")
    return page


@pytest.fixture
def opened(browser: webdriver.Chrome, results_page: Path) -> webdriver.Chrome:
    return go(browser, results_page)


@pytest.fixture
def standing(browser: webdriver.Chrome, results_page: Path) -> webdriver.Chrome:
    """The same as another test has left it: for those that do not mind, since plotly takes its second to load."""
    return browser if browser.current_url == results_page.as_uri() else go(browser, results_page)


def go(browser: webdriver.Chrome, page: Path, *, width: int = 1280, scheme: str = "light") -> webdriver.Chrome:
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # reading empties it
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    return browser


def table(browser: webdriver.Chrome, title: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, f".scroll[aria-label='{title}, table'] table")


def column(of: WebElement, place: int) -> list[str]:
    cells = of.find_elements(By.CSS_SELECTOR, f"tbody tr:not([hidden]) > :nth-child({place + 1})")
    return [cell.get_attribute("textContent") or "" for cell in cells]


def head(of: WebElement, name: str) -> tuple[int, WebElement]:
    found = of.find_elements(By.CSS_SELECTOR, "thead th")
    names = [one.get_attribute("textContent") for one in found]
    return names.index(name), found[names.index(name)]


def events(browser: webdriver.Chrome) -> list[dict[str, Any]]:
    """Gives what the browser's network and page have told since this was asked last."""
    return [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]


def requests(browser: webdriver.Chrome) -> list[str]:
    """Gives the addresses that were asked for since the page was opened, pictures inside the page left out."""
    sent = [
        event["params"]["request"]["url"] for event in events(browser) if event["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in sent if not url.startswith("data:")]


def test_a_heading_sorts_by_value_and_back(standing: webdriver.Chrome) -> None:
    throughput = table(standing, "throughput")
    place, heading = head(throughput, "Median")
    button = heading.find_element(By.TAG_NAME, "button")
    button.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    once = column(throughput, place)
    # As times, not as texts: 1 s is the slowest.
    assert (once[0], once[-1]) == ("0.6400 ms", "1000 ms")
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(throughput, place) != once
    assert column(throughput, place)[0] == "1000 ms"
    _, other = head(throughput, "Model")
    other.find_element(By.TAG_NAME, "button").click()
    assert heading.get_attribute("aria-sort") == "none"


def test_what_is_empty_stands_last_either_way(standing: webdriver.Chrome) -> None:
    throughput = table(standing, "throughput")
    place, heading = head(throughput, "Note")
    for _ in range(2):
        heading.find_element(By.TAG_NAME, "button").click()
        assert column(throughput, place)[0] != ""
        assert column(throughput, place)[-6:] == [""] * 6


def test_the_filter_leaves_rows_with_all_its_words_and_says_how_many(standing: webdriver.Chrome) -> None:
    throughput = table(standing, "throughput")
    box = throughput.find_element(By.XPATH, "ancestor::div[@class='data']")
    said = box.find_element(By.TAG_NAME, "output")
    assert said.text.startswith("14 rows")
    field = box.find_element(By.CSS_SELECTOR, "input[type=search]")
    field.send_keys("SMALL 128")
    assert column(throughput, 0) == ["small"]
    assert said.text.startswith("1 of 14 rows")
    assert said.get_attribute("aria-live") == "polite"
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE)
    assert len(column(throughput, 0)) == 14


def test_all_columns_are_shown_when_asked_for(standing: webdriver.Chrome) -> None:
    throughput = table(standing, "throughput")
    _, hidden = head(throughput, "Inputs/s")
    assert hidden.is_displayed()
    more = throughput.find_elements(By.CSS_SELECTOR, "thead .more")
    assert more
    assert not any(one.is_displayed() for one in more)
    throughput.find_element(By.XPATH, "ancestor::div[@class='data']").find_element(By.CSS_SELECTOR, ".all").click()
    assert all(one.is_displayed() for one in more)


def hovered(browser: webdriver.Chrome, plot: WebElement) -> str:
    wait = WebDriverWait(browser, 10)
    label = wait.until(lambda _: plot.find_elements(By.CSS_SELECTOR, ".hoverlayer .hovertext text"))
    return " ".join(text.get_attribute("textContent") or "" for text in label)


@pytest.mark.parametrize("id", ["tradeoff", "scaling"])
def test_pointing_at_a_point_tells_what_it_is(standing: webdriver.Chrome, id: str) -> None:
    plot = standing.find_element(By.CSS_SELECTOR, f"#{id} .plot")
    standing.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
    point = plot.find_element(By.CSS_SELECTOR, ".scatterlayer .points path")
    ActionChains(standing).move_to_element(point).perform()
    label = hovered(standing, plot)
    assert re.search(r"(small|large), 3x\d+x\d+", label)
    assert "Inputs per second: " in label


def test_an_axis_can_be_chosen(standing: webdriver.Chrome) -> None:
    section = standing.find_element(By.ID, "tradeoff")
    Select(section.find_element(By.CSS_SELECTOR, "select[data-axis=x]")).select_by_visible_text("Parameters")
    WebDriverWait(standing, 10).until(
        lambda _: section.find_element(By.CSS_SELECTOR, ".xtitle").get_attribute("textContent") == "Parameters"
    )


def test_everything_can_be_done_by_keyboard(opened: webdriver.Chrome) -> None:
    def press(*keys: str) -> None:
        ActionChains(opened).send_keys(*keys).perform()

    def tab_to(selector: str) -> WebElement:
        for _ in range(200):
            press(Keys.TAB)
            here = opened.switch_to.active_element
            if opened.execute_script("return arguments[0].matches(arguments[1])", here, selector):
                return here
        raise AssertionError(selector)

    press(Keys.TAB)
    skip = opened.switch_to.active_element
    assert skip.text == "Skip to the content"
    assert skip.rect["x"] >= 0  # seen as soon as it has the focus
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert opened.execute_script(outline) == "solid"
    press(Keys.ENTER)

    plot = tab_to("#tradeoff .plot")
    press(Keys.ARROW_RIGHT)
    assert "Inputs per second: " in hovered(opened, plot)
    said = opened.find_element(By.CSS_SELECTOR, "#tradeoff .said")
    first = said.text
    assert re.match(r"(small|large), .*Inputs per second: ", first)
    press(Keys.ARROW_RIGHT)
    assert said.text != first
    press(Keys.ARROW_LEFT)
    assert said.text == first

    button = tab_to(".scroll[aria-label='throughput, table'] thead button")
    assert opened.execute_script(outline) == "solid"
    press(Keys.ENTER)
    assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    assert tab_to("summary").is_displayed()


def test_the_console_is_empty_and_nothing_is_fetched(opened: webdriver.Chrome, results_page: Path) -> None:
    assert opened.find_elements(By.CSS_SELECTOR, ".scatterlayer .points path")
    assert opened.get_log("browser") == []
    assert requests(opened) == [results_page.as_uri()]


def test_the_policy_lets_nothing_be_fetched_or_run(opened: webdriver.Chrome) -> None:
    events(opened)
    opened.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.com/x.png\" onerror=\"document.title = 1\">');"
        "const added = document.createElement('script'); added.textContent = 'document.title = 2'; document.body.append(added);"
    )
    fetched = opened.execute_async_script(
        "fetch('https://example.com/').then(arguments[0], () => arguments[0]('refused'))"
    )
    assert fetched == "refused"
    told = events(opened)
    # The browser tells of a request that it then does not send.
    wanted = {event["params"]["requestId"] for event in told if event["method"] == "Network.requestWillBeSent"}
    refused = {event["params"]["requestId"] for event in told if event["params"].get("blockedReason") == "csp"}
    assert wanted <= refused
    assert not [event for event in told if event["method"] == "Network.responseReceived"]
    assert opened.title == "vitbench report"
    assert any("Content Security Policy" in entry["message"] for entry in opened.get_log("browser"))


def test_names_from_outside_are_shown_and_do_nothing(opened: webdriver.Chrome) -> None:
    assert opened.title == "vitbench report"
    throughput = table(opened, "throughput")
    assert {*EVIL[:5], "x" * 300} < set(column(throughput, 0))
    assert {image.get_attribute("src")[:5] for image in opened.find_elements(By.TAG_NAME, "img")} == {"data:"}  # type: ignore[index]  # every image has one
    # Plotly reads its texts as a little HTML: a label shows the name itself all the same.
    plot = opened.find_element(By.CSS_SELECTOR, "#tradeoff .plot")
    Select(opened.find_element(By.CSS_SELECTOR, "#tradeoff select[data-axis=x]")).select_by_value("latency_median_ms")
    opened.execute_script(
        "const of = arguments[0].data.flatMap((trace, curveNumber) => (trace.text ?? []).map((text, pointNumber) =>"
        " ({text, curveNumber, pointNumber}))); Plotly.Fx.hover(arguments[0], [of.find(({text}) => text.includes('onerror'))])",
        plot,
    )
    assert '"><img src=x onerror=alert(1)>' in hovered(opened, plot)
    assert not plot.find_elements(By.TAG_NAME, "img")


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_never_wider_than_the_window(
    browser: webdriver.Chrome, results_page: Path, changes_page: Path, width: int
) -> None:
    for page in (results_page, changes_page):
        go(browser, page, width=width)
        for details in browser.find_elements(By.CSS_SELECTOR, "details"):
            browser.execute_script("arguments[0].open = true", details)
        scrolled, seen = browser.execute_script(
            "const root = document.documentElement; return [root.scrollWidth, root.clientWidth]"
        )
        assert scrolled == seen


def test_it_prints(browser: webdriver.Chrome, results_page: Path, changes_page: Path) -> None:
    for page in (results_page, changes_page):
        go(browser, page, width=360, scheme="dark")
        printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
        pdf = base64.b64decode(printed["data"])
        assert pdf.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 0
        # A4 on its side, in points.
        assert re.search(rb"/MediaBox\s*\[0 0 84\d\.?\d* 59\d\.?\d*\]", pdf)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_nothing_to_complain_about(
    browser: webdriver.Chrome, results_page: Path, changes_page: Path, scheme: str, width: int
) -> None:
    axe = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    for page in (results_page, changes_page):
        go(browser, page, width=width, scheme=scheme)
        browser.execute_script(axe)
        found: dict[str, Any] = browser.execute_async_script(
            "axe.run({resultTypes: ['violations']}).then(arguments[0], (error) => arguments[0]({error: String(error)}))"
        )
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
        assert len(found["passes"]) > 20


def test_changes_are_sorted_by_their_verdict_not_by_its_name(browser: webdriver.Chrome, changes_page: Path) -> None:
    found = table(go(browser, changes_page), "Findings")
    place, heading = head(found, "Verdict")
    assert column(found, place) == ["✗ regressed", "? inconclusive"]
    heading.find_element(By.TAG_NAME, "button").click()
    assert column(found, place) == ["✗ regressed", "? inconclusive"]
    assert browser.get_log("browser") == []
    assert requests(browser) == [changes_page.as_uri()]
