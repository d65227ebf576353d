"""The page as it is shown: in headless Chromium, narrow and wide, light and dark, and on paper."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from apr_falsify.evidence.report import bisection_html, bundle_html
from tests.acceptance.browser import Browser, open_browser
from tests.unit.evidence.bundles import facts_of
from tests.unit.evidence.pages import hostile, made, tiny

KEPT = "APR_FALSIFY_SCREENSHOTS"
"""Names a folder in which the screenshots are kept."""

LONG = "/" + "a-path-that-is-nowhere-broken-" * 8 + "</script><b>x"


def many_layers() -> dict[str, Any]:
    """The recording with the zeroed K bias, as if 30 layers had been run."""
    found = made("localised").bisection
    layer = [row for row in found["stages"] if row["layer"] == 2]
    more = [{**row, "layer": index} for index in range(3, 30) for row in layer]
    rows = [row for row in found["stages"] if row["layer"] is not None]
    return {**found, "stages": [*rows, *more, *(row for row in found["stages"] if row["layer"] is None)]}


def pages() -> dict[str, str]:
    """Name -> page."""
    told = {
        name: bisection_html(made(name).bisection, made(name).traces, weights=tiny().weights)
        for name in ("localised", "consistent", "several", "nan", "missing", "one-token")
    }
    told["30 layers"] = bisection_html(many_layers(), made("localised").traces, weights=tiny().weights)
    told["hostile"] = bisection_html(hostile(made("localised").bisection, LONG), command=LONG)
    told["bundle"] = bundle_html(
        facts_of(), made("several").bisection, made("several").traces, {"k-bias": made("localised").bisection}
    )
    told["bundle without figures"] = bundle_html(facts_of(), None, None, {})
    return told


NAMES = (
    "localised",
    "consistent",
    "several",
    "nan",
    "missing",
    "one-token",
    "30 layers",
    "hostile",
    "bundle",
    "bundle without figures",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    written = {}
    for name, html in pages().items():
        written[name] = folder / f"{name.replace(' ', '-')}.html"
        written[name].write_text(html, encoding="utf-8")
    return written


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    kept = os.environ.get(KEPT)
    return Path(kept) if kept else tmp_path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_readable(
    browser: Browser, files: dict[str, Path], screenshots: Path, name: str, width: int, scheme: str
) -> None:
    browser.show(files[name], width=width, scheme=scheme)
    found = browser.measure()
    assert found["width"] == width
    assert (found["scrollWidth"], found["overflowing"]) == (width, [])
    assert 0 <= found["headingTop"] < found["headingBottom"] <= 800
    assert found["levels"][0] == 1
    assert found["levels"].count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(found["levels"]))
    assert len(found["text"]) > 20
    assert [each for each in found["text"] if each["contrast"] < 4.5 or each["size"] < 11] == []
    assert [each for each in found["svgText"] if each["contrast"] < 4.5 or each["size"] < 11.5] == []
    assert {mark: ratio for mark, ratio in found["marks"].items() if ratio < 3} == {}
    for chart in found["charts"]:
        assert chart["intoArea"] <= 0
        assert chart["tickGap"] >= 2
        assert chart["outside"] == 0
        assert chart["cellText"] <= 0
    assert (found["scripts"], found["handlers"]) == (0, 0)
    assert browser.requests() == [files[name].as_uri()]
    dark = scheme == "dark"
    assert (found["background"] < 0.05) if dark else (found["background"] > 0.9)
    assert (found["ink"] > 0.6) if dark else (found["ink"] < 0.05)
    shot = screenshots / f"{files[name].stem}-{width}-{scheme}.png"
    browser.screenshot(shot)
    pixels = imread(shot)[..., :3]
    assert pixels.shape == (800, width, 3)
    assert (pixels.mean() < 0.35) if dark else (pixels.mean() > 0.75)


@pytest.mark.parametrize("name", ["localised", "several", "30 layers", "bundle"])
def test_on_paper_it_is_light_whole_and_no_wider_than_the_sheet(
    browser: Browser, files: dict[str, Path], name: str
) -> None:
    browser.show(files[name], width=690, scheme="dark", media="print")  # A4 less two margins of 14 mm
    found = browser.measure()
    assert found["scrollWidth"] == 690
    assert found["background"] > 0.9
    assert found["ink"] < 0.05
    assert found["openDetails"] == [height for height in found["openDetails"] if height > 0] != []


def test_the_plots_are_there_and_the_sentence_is_the_first_thing_shown(
    browser: Browser, files: dict[str, Path]
) -> None:
    browser.show(files["localised"], width=400, scheme="light")
    found = browser.measure()
    assert found["heading"].startswith("localised Layer 0's qkv_bias is wrong")
    told = [each["told"] for each in found["svgText"]]
    assert told.count("qkv_bias") >= 2
    assert {"k head 0", "100%", "1e-8"} <= set(told)


BROKEN = """
return [...document.querySelectorAll("td")].filter(cell => /^\\S{1,20}$/.test(cell.textContent))
  .filter(cell => {
    const word = document.createRange();
    word.selectNodeContents(cell);
    return new Set([...word.getClientRects()].map(line => Math.round(line.top))).size > 1;
  }).map(cell => cell.textContent);
"""


@pytest.mark.parametrize("width", [400, 700, 1000, 1400])
def test_no_word_of_a_bundles_tables_is_broken_by_the_long_names_of_its_tests(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    tests = (replace(one, name=f"tests/test_{'long_' * 20}.py::{one.name}") for one in facts_of().tests)
    page = tmp_path / "bundle.html"
    page.write_text(bundle_html(facts_of(tests=tuple(tests))), encoding="utf-8")
    browser.show(page, width=width, scheme="light")
    assert browser.driver.execute_script("return document.querySelectorAll('td').length") > 5
    assert browser.driver.execute_script(BROKEN) == []


def test_what_is_measured_can_fail(browser: Browser, tmp_path: Path) -> None:
    """A page that is wide, pale, small and scripted, and that loads something, is seen as such."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><body style='background:#fff;color:#bbb'><svg class=defs>"
        "<g id=a></g><g id=i></g><g id=r></g><g id=f></g><g id=gs></g><g id=gi></g><g id=gr></g></svg>"
        "<h1 style='margin-top:900px'>x</h1><h3>y</h3><p style='width:900px'>pale</p>"
        "<svg viewBox='0 0 1000 20' width=300><text x=0 y=10 font-size=12>tiny</text></svg>"
        "<img src='there-is-none.png' onerror='1'><script>1</script>"
    )
    browser.show(page, width=400, scheme="light")
    found = browser.measure()
    assert found["scrollWidth"] > 400
    assert len(found["overflowing"]) >= 1
    assert found["headingBottom"] > 800
    assert min(each["contrast"] for each in found["text"]) < 4.5
    assert min(each["size"] for each in found["svgText"]) < 11.5
    assert (found["scripts"], found["handlers"]) == (1, 1)
    assert len(browser.requests()) == 2
