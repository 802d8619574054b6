"""Cache keys, retries and references of the tasks, without a server."""

import asyncio
import errno
import uuid
from types import SimpleNamespace

import aiohttp
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from prefect import flow, task
from prefect.states import Completed, exception_to_failed_state
from prefect.testing.utilities import prefect_test_harness

import tasks.progress
import tasks.study
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.study.schema import LAYOUT_VERSION
from tasks.progress import StageError, follow
from tasks.references import BatchRef, CellRef, RunRef
from tasks.retries import is_transient, should_retry
from tasks.study import generate, label, probe, unit_key

RUN = RunRef(url="/a", identity="one")
BATCH = BatchRef(run=RUN, number=3, first=24, last=31)
CELL = CellRef(run=RUN, step=3, layer="up_blocks.1.attentions.0")


def key(task, **parameters):
    return unit_key(SimpleNamespace(task=SimpleNamespace(name=task)), parameters)


@pytest.fixture
def all_done(monkeypatch):
    monkeypatch.setattr(tasks.study, "is_done", lambda verb, unit: True)


@pytest.mark.usefixtures("all_done")
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


def test_what_the_store_has_no_mark_of_is_carried_out_whatever_prefect_remembers(
    tiny_study, tmp_path
):
    run = prepare_run(tiny_study(), str(tmp_path))
    ref = RunRef(url=run.url, identity="one")
    batch = BatchRef(run=ref, number=1, first=4, last=7)
    cell = CellRef(run=ref, step=2, layer=run.layers[1])
    for verb, mark, index, unit in (
        ("generate", "generated", (1,), {"batch": batch}),
        ("label", "labeled", (1,), {"batch": batch}),
        ("probe", "probed", (1, 1), {"cell": cell}),
    ):
        assert key(verb, **unit) is None
        run.progress.mark_done(mark, *index)
        assert key(verb, **unit) is not None


def test_a_users_mistake_on_a_worker_comes_back_as_one(monkeypatch):
    @flow
    def stage(error):
        @task
        def unit():
            raise error

        return follow("stage", {"one": unit.submit()})

    monkeypatch.setattr(tasks.progress, "create_progress_artifact", lambda **_: uuid.uuid4())
    monkeypatch.setattr(tasks.progress, "update_progress_artifact", lambda **_: None)
    with prefect_test_harness():
        with pytest.raises(UserError, match=r"^model.source 'x' has fingerprint"):
            stage(UserError("model.source 'x' has fingerprint a here"))
        with pytest.raises(StageError, match=r"1 of 1 units of stage failed.*one, ValueError: bad"):
            stage(ValueError("bad"))


def _answered(status):
    return ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError("cut"), True),
        (OSError(errno.EIO, "disk"), True),
        (OSError("an object store's server error"), True),
        (TimeoutError(), True),
        (aiohttp.ClientPayloadError("cut within"), True),
        (ReadTimeoutError(endpoint_url="http://here"), True),
        (ConnectionClosedError(endpoint_url="http://here"), True),
        (_answered(503), True),
        (_answered(429), True),
        (_answered(403), False),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError(errno.EDQUOT, "quota"), False),
        (OSError(errno.EROFS, "read-only"), False),
        (PermissionError(errno.EACCES, "closed"), False),
        (PermissionError("Forbidden"), False),
        (FileNotFoundError("no such bucket"), False),
        (UserError("a mistake"), False),
        (ValueError("region"), False),
        (RuntimeError("hook"), False),
    ],
)
def test_only_what_may_pass_is_retried(error, again):
    async def ask():
        return await should_retry(None, None, await exception_to_failed_state(error))

    assert is_transient(error) is again
    assert asyncio.run(ask()) is again


def test_what_did_not_fail_is_not_retried():
    assert asyncio.run(should_retry(None, None, Completed(data=1))) is False


def test_run_names_say_what_is_done():
    assert generate.task_run_name.format(batch=BATCH) == "batch 0003 · samples 24-31"
    assert label.task_run_name.format(batch=BATCH) == "label 0003 · samples 24-31"
    assert probe.task_run_name.format(cell=CELL) == "cell step 03 · up_blocks.1.attentions.0"


def test_every_unit_task_retries_and_keeps_small_json_results():
    for unit in (generate, label, probe):
        assert unit.retries == 4
        assert unit.persist_result
        assert unit.result_serializer == "json"
        assert unit.cache_key_fn is unit_key
