"""Tests of cache keys and task options of units, without a Prefect server."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.study.schema import LAYOUT_VERSION
from tasks.references import RunRef, UnitRef, units_of
from tasks.study import accumulate, generate, label, probe, unit_key

RUN = RunRef(url="/a", identity="one")
BATCH = UnitRef(run=RUN, verb="generate", index=(3,), title="batch 0003 · samples 24-31")
CELL = UnitRef(run=RUN, verb="probe", index=(3, "up_blocks.1.attentions.0"), title="cell")


def key(task, unit):
    return unit_key(SimpleNamespace(task=SimpleNamespace(name=task)), {"unit": unit})


@pytest.fixture
def all_done(monkeypatch):
    monkeypatch.setattr(UnitRef, "is_done", True)


@pytest.mark.usefixtures("all_done")
def test_unit_key_names_version_verb_run_and_index():
    keys = {
        key("generate", BATCH),
        key("label", BATCH),
        key("generate", BATCH.model_copy(update={"index": (4,)})),
        key("generate", BATCH.model_copy(update={"run": RunRef(url="/a", identity="two")})),
        key("probe", CELL),
        key("probe", CELL.model_copy(update={"index": (4, "up_blocks.1.attentions.0")})),
        key("probe", CELL.model_copy(update={"index": (3, "mid_block")})),
    }
    assert len(keys) == 7
    assert all(f"-{LAYOUT_VERSION}-" in k for k in keys)
    assert key("generate", BATCH) == key("generate", BATCH)


def test_unit_key_is_none_until_the_progress_record_has_the_unit(tiny_study, tmp_path):
    run = prepare_run(tiny_study(), str(tmp_path))
    ref = RunRef(url=run.url, identity="one")
    for verb, progress, index, number in (
        ("generate", "generated", (1,), 1),
        ("label", "labeled", (1,), 1),
        ("probe", "probed", (1, 1), len(run.probe_inputs) + 1),
    ):
        unit = units_of(ref, verb)[number]
        assert key(verb, unit) is None
        run.progress.mark_done(progress, *index)
        assert key(verb, unit) is not None


def test_unit_tasks_retry_and_keep_json_results():
    for unit in (generate, label, accumulate, probe):
        assert unit.retries == 4
        assert unit.persist_result
        assert unit.result_serializer == "json"
        assert unit.cache_key_fn is unit_key
