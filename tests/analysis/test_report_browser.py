"""The report in a real browser: no errors, every figure has a size, cells have their values."""

import json
import os
import re
import shutil

import pytest
from playwright.sync_api import sync_playwright
from run_helpers import carry_out
from tiers import rest_slow

from ldmprobe_core.analysis.report.build import build_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("LDMPROBE_BROWSER_REQUIRED"),
    reason="no Chromium on this machine; .ci/run installs one and requires it",
)


@pytest.fixture(scope="module")
def report(tiny_model, tmp_path_factory):
    from ldmprobe_core.study.loading import parse_study

    evil = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }}"]
    study = parse_study(
        {
            "name": "browser",
            "model": {"source": str(tiny_model)},
            "prompts": {"items": [*evil, *(f"a ball {i}" for i in range(9))]},
            "sampling": {"steps": 3, "batch": 4, "guidance": 2.0, "threads": 1},
            "bootstrap": {"resamples": 200},
        }
    )
    run = carry_out(study, str(tmp_path_factory.mktemp("browser")))
    heldout = [int(i) for i in run.open("scores/depth").sample.values]
    prompts = [str(p) for p in run.open("samples").prompt.values]
    build_report(run, {"generate": 1.0}, tuple(heldout))
    return run, [prompts[i] for i in heldout]


@pytest.fixture(scope="module")
def browser():
    assert BROWSER, "LDMPROBE_BROWSER_REQUIRED is set, and there is no Chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
        )
        yield browser
        browser.close()


def open_page(browser, **settings):
    """Open a page that may be slow, as on a loaded machine."""
    page = browser.new_page(**settings)
    page.set_default_timeout(240_000)
    return page


@pytest.mark.parametrize("width", rest_slow([1280, 390], (0,)))
def test_the_page_works_at_this_width(report, browser, width):
    run, prompts = report
    page = open_page(browser, viewport={"width": width, "height": 900})
    told, asked, alerts = [], [], []
    page.on("console", lambda m: told.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda r: asked.append(r.url))
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.goto(f"file://{run.url}/report/index.html")
    page.wait_for_load_state("load")
    assert told == []
    assert alerts == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    sizes = page.eval_on_selector_all(
        "img", "all => all.map(i => [i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(sizes) >= 2 * len(prompts)
    assert all(natural > 100 and shown > 50 for natural, shown in sizes)
    heatmaps = page.query_selector_all("object")
    assert len(heatmaps) == 3
    for heatmap in heatmaps:
        assert heatmap.get_attribute("aria-label").startswith("Heatmap of ")
        box = heatmap.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
    body = page.inner_text("body")
    for prompt in prompts:
        assert prompt in body
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width  # tables and figures scroll sideways in their own boxes
    drawing = run.location.read_text(f"report/{heatmaps[0].get_attribute('data')}")
    titles = re.findall("<title>(.*?)</title>", drawing)
    assert titles
    assert all(re.fullmatch(r"step \d+, \S+: -?\d\.\d{3}", title) for title in titles)
    page.close()


@pytest.mark.parametrize("name", ["index", "samples"])
def test_a_printed_page_is_no_wider_than_its_paper(report, browser, name):
    """A4 with margins is 718 px wide, and pictures are printed though they are backgrounds."""
    run, _ = report
    page = open_page(browser, viewport={"width": 718, "height": 1000})
    page.emulate_media(media="print")
    page.goto(f"file://{run.url}/report/{name}.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    adjusted = page.eval_on_selector_all(
        ".tile", "all => all.map(tile => getComputedStyle(tile).printColorAdjust)"
    )
    assert set(adjusted) == ({"exact"} if name == "samples" else set())
    page.close()


CONTRASTS = """() => {
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("p, li, td, th, a, h1, h2, figcaption, pre")].map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
}"""
"""Contrast ratio of every text with its background, as WCAG 2.2 defines it."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_contrast_captions_and_contents(report, browser, scheme):
    run, _ = report
    page = open_page(browser, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page.goto(f"file://{run.url}/report/index.html")
    assert min(page.evaluate(CONTRASTS)) >= 4.5
    captions = page.eval_on_selector_all(
        "figure", "all => all.map(f => f.querySelector('figcaption')?.textContent.trim() ?? '')"
    )
    assert captions
    assert all(captions)
    anchors = page.eval_on_selector_all("nav a", "all => all.map(a => a.getAttribute('href'))")
    assert len(anchors) == page.locator("h2").count() - 1  # all but the first, which is above
    assert all(page.locator(anchor).count() == 1 for anchor in anchors)
    page.close()


TILES = """() => [...document.querySelectorAll("article:not([hidden])")].map(card => ({
  title: card.querySelector("h2").textContent,
  tiles: [...card.querySelectorAll(".tile")].map(t => getComputedStyle(t).backgroundPositionX),
  scores: card.querySelector(".scores").textContent,
}))"""
"""Visible cards of the page of samples, in their order."""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_samples_page_moves_sorts_and_filters(report, browser, width):
    run, _ = report
    page = open_page(browser, viewport={"width": width, "height": 900})
    told, asked = [], []
    page.on("console", lambda m: told.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto(f"file://{run.url}/report/index.html")
    page.click("text=with step images")
    page.wait_for_selector("article .scores:has-text('depth')")
    before = page.evaluate(TILES)
    tests = [i for i, sample in enumerate(run.samples) if sample.split == "test"]
    assert [int(card["title"].split(":")[0]) for card in before] == tests

    page.fill("#step", "0")
    after = page.evaluate(TILES)
    # Of each card, the image, and the maps of probe and labeler move; final image and labels stay.
    stays = [False, True, *[False, False, True] * 3]
    for one, two in zip(before, after, strict=True):
        moved = [a != b for a, b in zip(one["tiles"], two["tiles"], strict=True)]
        assert moved == [not s for s in stays]
    assert page.inner_text("#shown") == "1"

    page.select_option("#sort", "depth")
    values = run.open("scores/depth").score
    best = build_report_best(run, "depth")
    values = values.sel(condition="probe", kind=best["kind"], metric=best["metric"])
    values = values.sel(layer=best["layer"], step=1, sample=tests).values
    defined = {i: v for i, v in zip(tests, values, strict=True) if v == v}
    order = [int(card["title"].split(":")[0]) for card in page.evaluate(TILES)]
    assert [defined[i] for i in order[: len(defined)]] == sorted(defined.values(), reverse=True)
    assert page.is_enabled("#order")
    page.select_option("#order", "-1")
    order = [int(card["title"].split(":")[0]) for card in page.evaluate(TILES)]
    assert [defined[i] for i in order[: len(defined)]] == sorted(defined.values())

    page.fill("#text", "BALL")
    assert all("ball" in card["title"] for card in page.evaluate(TILES))
    page.fill("#text", "no such prompt")
    assert page.evaluate(TILES) == []
    assert page.inner_text("#count") == "0 samples"
    assert told == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def build_report_best(run, prop):
    """The best cell of a property in the run's summary."""
    return json.loads(run.location.read_text("summary.json"))["properties"][prop]["best"]


@pytest.mark.slow
def test_without_scripts_the_pictures_stay(report, browser):
    run, _ = report
    page = open_page(browser, java_script_enabled=False)
    page.goto(f"file://{run.url}/report/index.html")
    assert page.locator("img").count() >= 6
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator('object[aria-label^="Heatmap of depth"]').count() == 1
    page.close()
