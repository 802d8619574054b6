"""Links, paths and names that the pages give exist."""

import re
from pathlib import Path

import pytest
import yaml

from ldmprobe_core.study.loading import parse_study

ROOT = Path(__file__).parents[2]


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_paths(text):
    """Words in backticks that are paths of files or folders of the repository."""
    return re.findall(r"`([\w./-]*(?:/|\.(?:py|html|json|yaml)))`", text)


def exists(path):
    return (ROOT / path).exists() or (ROOT / "ldmprobe_core" / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_index_lists_every_page():
    page = (ROOT / "docs/index.md").read_text()
    for path in ROOT.glob("docs/**/*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"({name})" in page, name


@pytest.mark.parametrize(
    ("page", "section"),
    [
        ("docs/architecture.md", "# Architecture\n"),
        ("CONTRIBUTING.md", "# Contributing\n"),
        ("README.md", "## Where to look in the code\n"),
    ],
)
def test_paths_of_the_code_exist(page, section):
    _, found, text = (ROOT / page).read_text().partition(section)
    assert found
    if section.startswith("## "):
        text = text.partition("\n## ")[0]
    text = re.sub(r"`(?:study|run)\.(?:yaml|json)`|`summary\.json`", "", text)
    for path in code_paths(text):
        if path in ("ldmprobe/", "figures.json"):  # the public API is tested by the README
            continue
        assert exists(path), path


def test_changes_table_has_enough_rows():
    page = (ROOT / "docs/architecture.md").read_text()
    rows = page.partition("## Where a change goes")[2].count("\n| ") - 2
    assert rows >= 25


def test_glossary_names_are_in_the_files_it_gives():
    rows = [
        line.split(" | ")
        for line in (ROOT / "docs/glossary.md").read_text().splitlines()
        if line.startswith("| ") and "---" not in line and "| in code |" not in line
    ]
    assert len(rows) > 30
    for row in rows:
        words = re.findall(r"`([^`]+)`", row[2])
        assert words, row[0]
        *names, path = words
        assert exists(path), path
        for name in names:
            text = (ROOT / "ldmprobe_core" / path).read_text()
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), (name, path)


@pytest.mark.parametrize("page", ["README.md", "docs/models.md", "docs/operations.md"])
def test_studies_in_yaml_are_valid(page, code_blocks):
    blocks = [
        yaml.safe_load(block) for block in code_blocks(page, "yaml") if "job_var" not in block
    ]
    assert blocks or page == "docs/operations.md"
    for content in blocks:
        parse_study(content, page)
