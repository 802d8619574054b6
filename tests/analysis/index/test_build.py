"""The index of a store: its entries, links and numbers, and the page in a real browser."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.sync_api import sync_playwright

from flows import cli
from ldmprobe_core.analysis.index.build import RunEntry, index_page, read_entry, write_index
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.study.loading import parse_study

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def store(finished_run, tmp_path_factory):
    """Store of two finished runs, an unfinished and a damaged one, and a folder that is no run."""
    store = tmp_path_factory.mktemp("store")
    for name in ("first", "second run", "half"):
        shutil.copytree(finished_run.url, store / name)
    (store / "half/summary.json").unlink()
    (store / "damaged").mkdir()
    (store / "damaged/study.json").write_text("{")
    (store / "no run").mkdir()
    shutil.copytree(store / "half", store / "old run ")  # names that are no addresses of runs
    shutil.copytree(store / "half", store / "two\nlines")
    shutil.copytree(store / "half", store / os.fsdecode(b"caf\xe9"))  # Latin-1
    os.utime(store / "first/summary.json", (1e9, 1e9))  # 2001-09-09 01:46:40 UTC
    write_index(str(store))
    return store


class Page(HTMLParser):
    """Links, headers of columns, and addresses that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.headers, self._header = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "a":
            self.links.append(attributes["href"])
        elif "src" in attributes or tag == "link":
            self.loaded.append(attributes)
        self._header = tag == "th" and attributes.get("scope") == "col"

    def handle_data(self, data):
        if self._header:
            self.headers.append(data.strip())
            self._header = False


def test_index_links_to_every_report_and_loads_nothing(store):
    page = Page((store / "index.html").read_text())
    assert sorted(set(page.links)) == [
        "first/report/index.html", "second%20run/report/index.html",
    ]  # fmt: skip
    for link in page.links:
        assert (store / unquote(link)).is_file()
    assert page.loaded == []
    for header in ("run", "model", "date (UTC)", "state", "foreground", "depth", "shading"):
        assert header in page.headers
    assert '<th scope="row">labels by</th>' in (store / "index.html").read_text()


def test_index_states_progress_dates_and_damage(store):
    text = (store / "index.html").read_text()
    assert "2001-09-09 01:46" in text
    assert re.search(r"not finished: (\d+) of \1 batches generated, (\d+) of \2 cells probed", text)
    assert "unreadable: " in text
    assert "study.json is truncated or not JSON" in text
    assert "the address begins or ends with a space" in text
    assert "the address has unprintable characters" in text
    assert "the address is not UTF-8" in text
    assert r"<td>caf\udce9</td>" in text
    assert "no run" not in re.findall(r"<td>([^<]*)</td>", text)
    rows = re.findall(r'data-run="\d+" aria-label="(.*?) side by side"', text)
    assert rows == ["second run", "first"]  # newest first


@pytest.mark.parametrize(
    "table", ["a,b\n1,2\n", "property,metric,kind,condition,step,layer,mean\nx,m,k,c,1,l,0.5\n"]
)
def test_index_shows_a_run_whose_table_of_scores_is_damaged(finished_run, tmp_path, table):
    (tmp_path / "run/report").mkdir(parents=True)
    for name in ("study.json", "summary.json", "zarr.json"):
        shutil.copy(Path(finished_run.url) / name, tmp_path / "run" / name)
    shutil.copytree(Path(finished_run.url) / "progress", tmp_path / "run/progress")
    (tmp_path / "run/report/scores.csv").write_text(table)
    entry = read_entry(Location(str(tmp_path)), "run")
    assert entry.state.startswith("finished; report/scores.csv is damaged, and `ldmprobe report ")
    assert entry.means == {}
    assert entry.labelers == dict.fromkeys(("foreground", "depth", "shading"), "tabletop")
    assert entry.summary == load_summary(finished_run)


def test_index_shows_a_finished_run_whose_property_is_defined_otherwise(
    finished_run, tmp_path, own_module
):
    """One process cannot read the studies of both runs."""
    shutil.copytree(finished_run.url, tmp_path / "run")
    study = json.loads((tmp_path / "run/study.json").read_text())
    first, other = (
        {"glow": {"kind": "scalar", "metrics": [metric]}} for metric in ("spearman", "pearson")
    )
    own_module("unused", "")  # forgets the property afterwards
    parse_study({**study, "properties": first})
    (tmp_path / "run/study.json").write_text(json.dumps({**study, "properties": other}))
    entry = read_entry(Location(str(tmp_path)), "run")
    assert entry.state == "finished"
    assert entry.model == study["model"]["source"]
    names = ("foreground", "depth", "shading", "class")
    assert entry.labelers == {name: study["labels"][name]["name"] for name in names}
    assert entry.means
    assert entry.summary == load_summary(finished_run)


def test_index_shows_best_scores_and_cells(store, finished_run):
    text = (store / "index.html").read_text()
    entry = read_entry(Location(str(store)), "first")
    for name, result in load_summary(finished_run).properties.items():
        best = result.best
        assert text.count(f"{best.score.mean:.2f}") >= 4  # two runs, in both tables
        cells = entry.means[name]
        assert len(cells) == 3 * 2
        assert cells[best.layer, best.step] == pytest.approx(best.score.mean, abs=1e-6)
        assert list(cells) == [(layer, step) for layer in finished_run.layers for step in (1, 2, 3)]
    # Per run and table, three properties with a heatmap of 3 steps and 2 layers.
    assert text.count("<svg") == 2 * 2 * 3
    assert text.count("<rect") == 2 * 2 * 3 * 6


def test_index_escapes_names():
    entry = RunEntry("<script>alert(1)</script>", "unreadable: <b>", model='"><img src=x>')
    page = index_page("<i>store</i>", [entry])
    for part in ("<script>alert", "<b>", "<img", "<i>store"):
        assert part not in page


def test_index_of_a_store_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no run in it"):
        write_index(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_command_index_prints_the_pages_address(store, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ldmprobe", "index", str(store)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == str(store / "index.html")


@pytest.mark.slow
@pytest.mark.skipif(
    BROWSER is None and not os.environ.get("LDMPROBE_BROWSER_REQUIRED"),
    reason="no Chromium on this machine; .ci/run installs one and requires it",
)
def test_index_works_in_a_narrow_browser(store):
    requests, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        address = (Path(store) / "index.html").as_uri()
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        columns = page.locator("#beside th[data-run]:visible")
        assert columns.count() == 2
        page.locator('input[aria-label="first side by side"]').uncheck()
        assert columns.all_inner_texts() == ["second run"]
        for figure in page.locator("svg").all():
            assert "highest" in figure.get_attribute("aria-label")
        page.locator("#beside a:visible").click()
        assert page.url.endswith("/second%20run/report/index.html")
        browser.close()
    assert errors == []
    assert all(url.startswith(address.removesuffix("index.html")) for url in requests)
