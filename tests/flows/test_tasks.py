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
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.study.schema import LAYOUT_VERSION
from tasks.progress import StageError, follow
from tasks.references import RunRef, UnitRef, units_of
from tasks.retries import is_transient, should_retry
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


def test_unit_ref_survives_json(tiny_study, tmp_path):
    """Numbers stay numbers, and a layer's name stays text."""
    for unit in (BATCH, CELL):
        assert UnitRef.model_validate_json(unit.model_dump_json()) == unit


def test_a_users_mistake_on_a_worker_comes_back_as_one(monkeypatch):
    @flow
    def stage(error):
        @task
        def unit():
            raise error

        return follow("stage", {"one": unit.submit()})

    monkeypatch.setattr(tasks.progress, "create_progress_artifact", lambda **_: uuid.uuid4())
    monkeypatch.setattr(tasks.progress, "update_progress_artifact", lambda **_: None)
    with prefect_test_harness(server_startup_timeout=120):
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


def test_units_of_gives_every_unit_with_the_name_of_its_task_run(tiny_study, tmp_path):
    study = tiny_study(capture={"keep": "both", "accumulators": 2})
    run = prepare_run(study, str(tmp_path))
    ref = RunRef(url=run.url, identity="one")
    titles = {
        verb: [unit.title for unit in units_of(ref, verb)]
        for verb in ("generate", "label", "accumulate", "probe")
    }
    assert titles["generate"] == [
        "batch 0000 · samples 0-3",
        "batch 0001 · samples 4-7",
        "batch 0002 · samples 8-11",
    ]
    assert titles["label"][1] == "label 0001 · samples 4-7"
    assert titles["accumulate"] == [
        "part 0 unit 0000 · samples 0-7",
        "part 1 unit 0000 · samples 8-11",
    ]
    assert titles["probe"][4] == f"cell step 02 · {run.probe_inputs[1]}"
    assert len(titles["probe"]) == 3 * len(run.probe_inputs)
    for unit in (generate, label, accumulate, probe):
        assert unit.task_run_name == "{unit.title}"


def test_every_unit_task_retries_and_keeps_small_json_results():
    for unit in (generate, label, accumulate, probe):
        assert unit.retries == 4
        assert unit.persist_result
        assert unit.result_serializer == "json"
        assert unit.cache_key_fn is unit_key
