"""The page in a real browser, by clicks and keys: Chromium, headless, as wide as a desk and as a phone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_adapters.analysis.explanation import explain
from tests.tiny import trained

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or CHROMEDRIVER is None:
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)

LABELS = ("push", "pull", '</script><b>"lift"', "drop", "turn")
SIZES = {"desk": (1440, 1000), "phone": (390, 844)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("report") / "report.html"
    explain(trained("vit_tiny_patch16_224", labels=LABELS), frames, target=2).save(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


class Page:
    """The report, opened."""

    def __init__(self, driver: Any, report: Path, size: tuple[int, int], *, motion: bool = False) -> None:
        self.driver = driver
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-reduced-motion", "value": "no-preference" if motion else "reduce"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get(report.as_uri())
        self.wait(lambda: not self.run("return report.hidden"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def press(self, *keys: str, on: str = "body") -> None:
        if on != "body":
            self.run("arguments[0].focus()", self.find(on))
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def picture(self) -> str:
        return str(self.run("return picture.toDataURL()"))

    def wait(self, until: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not until():
            assert time.monotonic() < end, self.driver.get_log("browser")
            time.sleep(0.02)


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Page]:
    page = Page(browser, report, SIZES[request.param])
    yield page
    assert browser.get_log("browser") == []  # nothing failed, nothing was refused by the policy


def test_every_choice_changes_the_picture(page: Page) -> None:
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    seen = [page.picture()]
    for selector in ("#variant-cards label:first-child", "#kinds label:nth-child(2)", "#kinds label:nth-child(3)"):
        page.click(f"{selector} input")
        seen.append(page.picture())
    page.click("#kinds label:first-child input")
    page.click("#variant-cards label:last-child input")
    assert page.picture() == seen[0]
    page.click("#head option:nth-child(2)")
    seen.append(page.picture())
    page.press("\ue012", on="#block")  # left
    assert page.text("#block-text").startswith("1 ")
    seen.append(page.picture())
    for selector in ("#smooth", "#each"):
        page.click(selector)
        seen.append(page.picture())
    page.press("\ue011", on="#opacity")  # home
    seen.append(page.picture())
    assert len(set(seen)) == len(seen)
    assert page.text("#opacity-text") == "0%"


def test_labels_are_text_and_the_answers_a_table(page: Page) -> None:
    assert LABELS[2] in page.text("#answers tr.target th")
    assert len(page.driver.find_elements("css selector", "#answers thead th[scope=col]")) == 5
    assert len(page.driver.find_elements("css selector", "#answers td.chosen")) == len(
        page.driver.find_elements("css selector", "#answers tbody tr")
    )
    assert page.text("#order-table") and page.find("#deletion-plot svg").is_displayed()
    page.click("#deletion summary")
    assert len(page.driver.find_elements("css selector", "#deletion-table tbody tr")) > 1


def test_a_patch_is_chosen_by_click_and_by_keys(page: Page) -> None:
    whole = page.text("#time-text")
    assert "the mean over all patches" in whole
    page.click("#picture")
    page.wait(lambda: "the patch at row" in page.text("#time-text"))
    assert page.find("#release").is_displayed()
    page.click("#release")
    page.run("document.activeElement.blur()")
    assert page.text("#time-text") == whole or not page.find("#release").is_displayed()
    page.press("\ue015", "\ue013", "\ue012", on="#stage")  # down begins in the middle, up, left
    assert "row 0, column 0" in page.text("#time-text")
    page.wait(lambda: "At row 0, column 0" in page.find("#live").get_attribute("textContent"))
    shares = [cell.text for cell in page.driver.find_elements("css selector", "#strip .share")]
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=2)
    page.click("#time-numbers summary")
    page.wait(lambda: len(page.driver.find_elements("css selector", "#time-table tbody tr")) == 4)
    page.press("\ue00c", on="#stage")  # escape
    assert not page.find("#release").is_displayed()


def test_frames_are_stepped_through_and_played(page: Page, browser: Any, report: Path) -> None:
    assert (page.text("#frame-text"), page.text("#play")) == ("1 / 4", "Play")  # as motion is to be reduced
    page.press("\ue014", "\ue014", "\ue012")  # right, right, left
    assert page.text("#frame-text") == "2 / 4"
    page.wait(lambda: page.find("#live").get_attribute("textContent").startswith("Frame 2 of 4. Strongest at row"))
    page.click("#strip button:nth-child(4)")
    assert page.text("#frame-text") == "4 / 4"
    page.press("\ue014")  # in the film strip, around the end
    assert page.text("#frame-text") == "1 / 4"
    page.run("document.activeElement.blur()")
    page.press(" ")
    page.wait(lambda: page.text("#frame-text") != "1 / 4")
    assert page.text("#play") == "Pause"
    page.click("#play")
    assert page.text("#play") == "Play"
    moving = Page(browser, report, SIZES["desk"], motion=True)
    assert moving.text("#play") == "Pause"


CONTRAST = """
const level = (c) => { const v = c / 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
const light = (c) => .2126 * level(c[0]) + .7152 * level(c[1]) + .0722 * level(c[2]);
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
function behind(e) {
  for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3]) return c; }
  return [255, 255, 255];
}
return [...document.body.querySelectorAll("*")].filter((e) =>
  e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())
).map((e) => {
  const style = getComputedStyle(e), ink = numbers(e instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(ink), light(behind(e instanceof SVGElement ? e.ownerSVGElement.parentElement : e))].sort((x, y) => y - x);
  return [(a + .05) / (b + .05), e.textContent.trim().slice(0, 40)];
}).filter(([ratio]) => ratio < 4.5);
"""  # noqa: E501


def test_text_is_readable_in_both_themes_and_controls_have_names(page: Page) -> None:
    themes = []
    for _ in range(2):
        themes.append(page.run("return document.documentElement.dataset.theme"))
        assert page.run(CONTRAST) == []
        page.click("#theme")
    assert sorted(themes) == ["dark", "light"]
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        node for node in nodes if node["role"]["value"] in {"button", "slider", "combobox", "radio", "checkbox"}
    ]
    assert len(controls) > 12
    assert [node for node in controls if not node["name"]["value"]] == []


def test_a_notebook_shows_it_in_a_frame(browser: Any, tmp_path: Path) -> None:
    frames = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    model = trained("vit_tiny_patch16_224", labels=LABELS)
    (tmp_path / "cell.html").write_text(explain(model, frames, checks=False)._repr_html_(), encoding="utf-8")
    browser.get((tmp_path / "cell.html").as_uri())
    browser.switch_to.frame(0)
    end = time.monotonic() + 20
    while browser.execute_script("return report.hidden"):
        assert time.monotonic() < end, browser.get_log("browser")
        time.sleep(0.02)
    browser.switch_to.default_content()
    assert browser.get_log("browser") == []
