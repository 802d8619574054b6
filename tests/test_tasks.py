"""Cache keys, retries and references of the tasks, without a server."""

import asyncio
from types import SimpleNamespace

import pytest
from prefect.states import Completed, exception_to_failed_state

from ldmprobe_core.errors import UserError
from ldmprobe_core.study import LAYOUT_VERSION
from tasks.references import BatchRef, CellRef, RunRef
from tasks.study import generate, is_transient, label, probe, unit_key

RUN = RunRef(url="/a", identity="one")
BATCH = BatchRef(run=RUN, number=3, first=24, last=31)
CELL = CellRef(run=RUN, step=3, layer="up_blocks.1.attentions.0")


def key(task, **parameters):
    return unit_key(SimpleNamespace(task=SimpleNamespace(name=task)), parameters)


def test_a_key_names_version_verb_run_and_unit():
    keys = {
        key("generate", batch=BATCH),
        key("label", batch=BATCH),
        key("generate", batch=BATCH.model_copy(update={"number": 4})),
        key("generate", batch=BATCH.model_copy(update={"run": RunRef(url="/a", identity="two")})),
        key("probe", cell=CELL),
        key("probe", cell=CELL.model_copy(update={"step": 4})),
        key("probe", cell=CELL.model_copy(update={"layer": "mid_block"})),
    }
    assert len(keys) == 7
    assert all(f"-{LAYOUT_VERSION}-" in k for k in keys)
    assert key("generate", batch=BATCH) == key("generate", batch=BATCH)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError("cut"), True),
        (OSError("disk"), True),
        (TimeoutError(), True),
        (UserError("a mistake"), False),
        (ValueError("region"), False),
        (RuntimeError("hook"), False),
    ],
)
def test_only_what_may_pass_is_retried(error, again):
    async def ask():
        return await is_transient(None, None, await exception_to_failed_state(error))

    assert asyncio.run(ask()) is again


def test_what_did_not_fail_is_not_retried():
    assert asyncio.run(is_transient(None, None, Completed(data=1))) is False


def test_run_names_say_what_is_done():
    assert generate.task_run_name.format(batch=BATCH) == "batch 0003 · samples 24-31"
    assert label.task_run_name.format(batch=BATCH) == "label 0003 · samples 24-31"
    assert probe.task_run_name.format(cell=CELL) == "cell step 03 · up_blocks.1.attentions.0"


def test_every_unit_task_retries_and_keeps_small_json_results():
    for task in (generate, label, probe):
        assert task.retries == 3
        assert task.persist_result
        assert task.result_serializer == "json"
        assert task.cache_key_fn is unit_key
