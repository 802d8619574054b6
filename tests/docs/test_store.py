"""docs/store.md: its example, and its table of groups against the groups of a run."""

import re
from pathlib import Path

import numpy as np
import zarr

ROOT = Path(__file__).parents[2]


def test_store_example_reads_a_run(documented_run, code_blocks):
    (code,) = code_blocks("docs/store.md")
    names = {}
    exec(code.replace('"runs/tabletop-..."', repr(documented_run.url)), names)
    assert set(np.unique(names["score"].split)) == {"validation", "test"}


def test_store_table_names_every_group_of_a_run(documented_run):
    page = (ROOT / "docs/store.md").read_text()
    groups = {
        name.partition("/")[0] for name in re.findall(r"^\| `([a-z_/<>]+)`", page, re.MULTILINE)
    }
    groups |= {"labels_clean"}  # beside labels_trajectory, in the same row
    root = zarr.open_group(documented_run.store, mode="r", use_consolidated=False)
    stored = set(root.group_keys())
    assert stored <= groups
    assert groups - stored == {"exact_maps", "statistics", "interventions"}  # not in this run
