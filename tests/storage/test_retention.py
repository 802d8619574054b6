"""Tests of retention: what is planned, what is deleted, and what is never touched."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_helpers import arrays, assert_same, small_study

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.units import carry_out_units
from ldmprobe_core.storage import lease as leases
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.lease import hold_lease
from ldmprobe_core.storage.lifecycle import retention
from ldmprobe_core.storage.lifecycle.lease_files import Holder
from ldmprobe_core.storage.lifecycle.reading import reading
from ldmprobe_core.storage.lifecycle.retention import DELETE, KEEP, PARTLY, SKIP, STRIP
from ldmprobe_core.storage.lifecycle.schedule_record import ScheduleRecord, write_schedule_record
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks
from ldmprobe_core.study.loading import parse_study


@pytest.fixture(scope="module")
def template(tiny_model, tmp_path_factory):
    """Store with four finished runs of the study `tiny`, with the seeds 0 to 3."""
    folder = tmp_path_factory.mktemp("template")
    for seed in range(4):
        prepared(tiny_model, folder, "tiny", seed)
    return folder


@pytest.fixture
def store(template, tmp_path):
    """Copy of the store's runs by seed, which is also their age in days."""
    shutil.copytree(template, tmp_path / "runs")
    found = {}
    for name in os.listdir(tmp_path / "runs"):
        run = Run(f"{tmp_path}/runs/{name}")
        found[run.study.prompts.seed] = run
        os.utime(f"{run.url}/identity", times=(1e9 - 86_400 * run.study.prompts.seed,) * 2)
    return found


def prepared(model: Path, folder: str | Path, name: str, seed: int) -> Run:
    """Create a run that has no data but counts as finished."""
    content = small_study(name, model, 8).model_dump(mode="json", by_alias=True)
    content["prompts"]["seed"] = seed
    run = prepare_run(parse_study(content), str(folder))
    run.location.write_text("summary.json", "{}")
    return run


def folder_of(store: dict[int, Run]) -> str:
    return store[0].url.rpartition("/")[0]


def actions(plan, store: dict[int, Run]) -> dict[int, str]:
    seeds = {run.url: seed for seed, run in store.items()}
    return {seeds[item.url]: item.action for item in plan if item.url in seeds}


def files(folder: str | Path) -> dict[str, bytes]:
    root = Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_newest_runs_are_kept_and_only_the_others_deleted(store):
    folder = folder_of(store)
    before = files(folder)
    plan = retention.plan_retention(folder, "tiny", keep=2)
    assert actions(plan, store) == {0: KEEP, 1: KEEP, 2: DELETE, 3: DELETE}
    sizes = {item.url: item.size for item in plan}
    for seed in (2, 3):
        assert sizes[store[seed].url] == sum(map(len, files(store[seed].url).values()))
    assert files(folder) == before  # a plan deletes nothing
    assert retention.apply_retention(plan, "tiny") == plan
    left = {store[seed].url.rpartition("/")[2] for seed in (0, 1)}
    assert set(os.listdir(folder)) == left  # no lease stays either
    assert files(folder) == {k: v for k, v in before.items() if k.partition("/")[0] in left}


def test_other_runs_are_never_deleted(store, tiny_model, tmp_path):
    folder = folder_of(store)
    prepared(tiny_model, folder, "tiny-other", 0)
    store[1].location.remove("summary.json")
    shutil.move(store[2].url, f"{folder}/kept-by-name")
    (tmp_path / "elsewhere").mkdir()
    os.rename(f"{store[3].url}/images", tmp_path / "elsewhere/images")
    os.symlink(tmp_path / "elsewhere/images", f"{store[3].url}/images")
    damaged = Path(folder, "tiny-0123456789")
    damaged.mkdir()
    (damaged / "study.json").write_text("{")
    (damaged / "summary.json").write_text("{}")
    Path(folder, "tiny-notes").mkdir()
    Path(folder, "tiny-notes/text").write_text("mine")
    prepared(tiny_model, folder, "tiny", 9)  # the newest, so every other one is too old
    before = files(folder)
    plan = retention.plan_retention(folder, "tiny", keep=1, keep_activations=0)
    reasons = {item.url.rpartition("/")[2]: item.reason for item in plan if item.action == SKIP}
    assert reasons.pop("tiny-0123456789").startswith("unreadable")
    assert reasons == {
        store[1].url.rpartition("/")[2]: "unfinished",
        "kept-by-name": "it was renamed",
        store[3].url.rpartition("/")[2]: f"{store[3].url}/images is a link",
    }
    retention.apply_retention(plan, "tiny")
    gone = {name for name in before if not Path(folder, name).exists()}
    assert {name.partition("/")[0] for name in gone} == {store[0].url.rpartition("/")[2]}
    assert files(tmp_path / "elsewhere")


def test_retention_of_scheduled_runs_follows_their_dates_and_spares_all_others(store):
    folder = folder_of(store)
    # By the times of their files the order would be 0, 1, 2, 3; no schedule started 1.
    for seed, day in {0: date(2026, 2, 1), 2: date(2026, 3, 1), 3: date(2025, 12, 31)}.items():
        write_schedule_record(store[seed].location, ScheduleRecord(scheduled_for=day))
    plan = retention.plan_retention(folder, "tiny", keep=1, scheduled_only=True)
    assert actions(plan, store) == {2: KEEP, 0: DELETE, 3: DELETE}
    assert [item.url for item in plan] == [store[seed].url for seed in (2, 0, 3)]
    plan = retention.plan_retention(
        folder, "tiny", keep=1, scheduled_only=True, protected=store[3].url
    )
    assert actions(plan, store) == {2: KEEP, 0: DELETE, 3: KEEP}
    store[0].location.write_text("schedule.json", "{")
    assert store[0].url not in {
        item.url for item in retention.plan_retention(folder, "tiny", 1, scheduled_only=True)
    }


def test_a_run_that_cannot_be_deleted_does_not_keep_the_others(store, monkeypatch):
    folder = folder_of(store)
    plan = retention.plan_retention(folder, "tiny", keep=2)
    remove_folder = Location.remove_folder

    def hindered(location, name=""):
        if location.url == store[2].url:
            raise PermissionError("not permitted")
        remove_folder(location, name)

    monkeypatch.setattr(Location, "remove_folder", hindered)
    done = retention.apply_retention(plan, "tiny")
    assert actions(done, store) == {0: KEEP, 1: KEEP, 2: SKIP, 3: DELETE}
    assert [item.reason for item in done if item.action == SKIP] == ["not permitted"]
    assert (os.path.exists(store[2].url), os.path.exists(store[3].url)) == (True, False)


@pytest.mark.parametrize("part", ["", ".move"])
def test_a_run_at_work_is_left_alone_before_and_after_planning(store, part):
    folder = folder_of(store)
    plan = retention.plan_retention(folder, "tiny", keep=3)
    before = files(store[3].url)
    with hold_lease(f"{store[3].url}{part}", "flow run 7"):
        again = retention.plan_retention(folder, "tiny", keep=3)
        assert actions(again, store)[3] == SKIP
        assert [i.reason for i in again if i.action == SKIP] == ["flow run 7 works on it"]
        (done,) = [i for i in retention.apply_retention(plan, "tiny") if i.url == store[3].url]
        assert done.action == SKIP
        assert "flow run 7" in done.reason
    assert files(store[3].url) == before


def test_a_run_is_left_alone_while_it_is_read(store):
    folder = folder_of(store)
    plan = retention.plan_retention(folder, "tiny", keep=3)
    with reading("a notebook", store[3].url), reading("another", store[3].url):
        again = retention.plan_retention(folder, "tiny", keep=3)
        assert actions(again, store) == {0: KEEP, 1: KEEP, 2: KEEP, 3: SKIP}
        done = retention.apply_retention(plan, "tiny")
        (item,) = [item for item in done if item.action == SKIP]
        assert item.url == store[3].url
        assert item.reason in ("a notebook works on it", "another works on it")
        # A reader that was killed, whose process number another process has now.
        (lease, _) = sorted(Path(folder).glob("*.reading-*.lease/000001"))
        dead = json.loads(lease.read_text()) | {"started_at": -1.0}
        left = Path(f"{store[3].url}.reading-9.lease")
        left.mkdir()
        (left / "000001").write_text(json.dumps(dead))
    assert store[3].exists
    assert retention.apply_retention(plan, "tiny") == plan
    assert sorted(os.listdir(folder)) == sorted(store[i].url.rpartition("/")[2] for i in (0, 1, 2))


def test_a_run_is_left_alone_while_a_reader_with_another_clock_has_heartbeats(store, monkeypatch):
    """By this machine's clock, which is ahead, its lease looks as if it had expired."""
    location = Location(f"{store[3].url}.reading-1.lease")
    holder = Holder("k", "a notebook", "another-machine/1", 77, 0.0)

    def beat(_: float = 0.0) -> None:
        beats.append(replace(holder, heartbeat=len(beats)))
        location.write_text("000001", json.dumps(vars(beats[-1])))
        os.utime(f"{location.url}/000001", (1e9 + len(beats),) * 2)

    beats: list[Holder] = []
    beat()
    plan = retention.plan_retention(folder_of(store), "tiny", keep=3)
    assert actions(plan, store)[3] == DELETE
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=beat)
    monkeypatch.setattr(leases, "time", clock)
    (item,) = [i for i in retention.apply_retention(plan, "tiny") if i.url == store[3].url]
    assert (item.action, item.reason) == (SKIP, "a notebook works on it")
    assert store[3].exists
    monkeypatch.setattr(clock, "sleep", lambda _: None)
    monkeypatch.setattr(leases, "STALE_S", 0.1)
    assert retention.apply_retention(plan, "tiny") == plan
    assert not store[3].exists


def test_a_run_that_is_being_deleted_is_not_read(store):
    with (
        hold_lease(store[0].url, "ldmprobe prune"),
        pytest.raises(UserError, match="ldmprobe prune is deleting from this run"),
        reading("a notebook", store[1].url, store[0].url),
    ):
        pytest.fail("it was read")
    with hold_lease(store[0].url, "flow run 7"), reading("a notebook", store[0].url):
        pass
    assert sorted(os.listdir(folder_of(store))) == sorted(
        run.url.rpartition("/")[2] for run in store.values()
    )


def test_a_run_whose_lease_cannot_be_read_is_neither_read_nor_deleted(store):
    """It may be the lease of retention, or that of a flow, under another user."""
    plan = retention.plan_retention(folder_of(store), "tiny", keep=3)
    location = Location(f"{store[3].url}.lease")
    location.write_text("000001", "{")
    with (
        pytest.raises(UserError, match=r"lease cannot be read works on this run.*\. Fix: wait"),
        reading("a notebook", store[3].url),
    ):
        pytest.fail("it was read")
    again = retention.plan_retention(folder_of(store), "tiny", keep=3)
    (item,) = [item for item in again if item.action == SKIP]
    assert (item.url, item.reason) == (
        store[3].url,
        "a process whose lease cannot be read works on it",
    )
    location.remove_folder()
    assert retention.plan_retention(folder_of(store), "tiny", keep=3) == plan


def test_a_run_in_a_store_that_is_read_only_is_read_without_a_lease(store, monkeypatch):
    def create(location, name, text):
        raise location.unwritable(PermissionError())

    monkeypatch.setattr(Location, "create", create)
    with reading("a notebook", store[0].url):
        assert store[0].study.name == "tiny"


def test_a_run_that_lost_its_summary_since_the_plan_is_left_alone(store):
    plan = retention.plan_retention(folder_of(store), "tiny", keep=3)
    store[3].location.remove("summary.json")
    before = files(store[3].url)
    assert actions(retention.apply_retention(plan, "tiny"), store)[3] == SKIP
    assert files(store[3].url) == before


def test_activations_are_deleted_and_made_again_bit_by_bit(finished_run, tmp_path):
    name = finished_run.url.rpartition("/")[2]
    shutil.copytree(finished_run.url, tmp_path / name)
    run = Run(str(tmp_path / name))
    chunks = {key for key in files(run.url) if key.startswith("activations") and
              "/activation/c/" in key}  # fmt: skip
    assert chunks
    before = files(run.url)
    plan = retention.plan_retention(str(tmp_path), "whole", keep_activations=0)
    assert [item.action for item in plan] == [STRIP]
    assert plan[0].size == sum(len(before[key]) for key in chunks)
    retention.apply_retention(plan, "whole")
    assert files(run.url) == {k: v for k, v in before.items() if k not in chunks}
    assert json.loads(run.location.read_text("summary.json"))
    assert retention.plan_retention(str(tmp_path), "whole", keep_activations=0)[0].action == KEEP
    # What `verify --redo` and the next run do:
    damage = list(find_corrupt_chunks(run))
    assert {chunk.key for chunk in damage} == chunks
    assert {chunk.reason for chunk in damage} == {"missing"}
    assert clear_progress(run, damage).beyond_repair == []
    carry_out_units(run)
    assert_same(run, finished_run)
    assert arrays(run).keys() == arrays(finished_run).keys()


@pytest.mark.parametrize(
    ("runs", "activations", "words"),
    [
        (None, None, "keep: neither keep nor keep_activations is given"),
        (0, None, r"keep: less than 1 \(0\)"),
        (1, -1, r"keep_activations: negative \(-1\)"),
    ],
)
def test_numbers_without_meaning_are_refused(tmp_path, runs, activations, words):
    with pytest.raises(UserError, match=words):
        retention.plan_retention(str(tmp_path), "tiny", runs, activations)


def test_a_run_that_is_deleted_in_part_is_named_with_the_bytes_that_are_gone(store, monkeypatch):
    """A file of the labels cannot be deleted; the activations, which come first, are gone."""
    folder = folder_of(store)
    plan = retention.plan_retention(folder, "tiny", keep=3)
    whole = sum(map(len, files(store[3].url).values()))
    remove = Location.remove_folder

    def refuse(location, name=""):
        if name == "labels":
            raise PermissionError(1, "Operation not permitted")
        remove(location, name)

    monkeypatch.setattr(Location, "remove_folder", refuse)
    (item,) = (one for one in retention.apply_retention(plan, "tiny") if one.url == store[3].url)
    left = sum(map(len, files(store[3].url).values()))
    assert (item.action, item.size) == (PARTLY, whole - left)
    assert 0 < left < whole
    assert "not permitted" in item.reason
    monkeypatch.undo()
    (item,) = (one for one in retention.apply_retention(plan, "tiny") if one.url == store[3].url)
    assert item.action == DELETE
    assert not os.path.exists(store[3].url)


def test_a_store_that_fails_amid_a_deletion_does_not_hide_what_was_deleted(store, monkeypatch):
    """The store answers no more after one folder is gone, not even with the size of the rest."""
    folder = folder_of(store)
    plan = retention.plan_retention(folder, "tiny", keep=3)
    remove, size = Location.remove_folder, Location.size
    removed = []

    def refuse(location, name=""):
        if removed:
            raise OSError(5, "Input/output error")
        removed.append(name)
        remove(location, name)

    def fail(location):
        if removed:
            raise OSError(5, "Input/output error")
        return size(location)

    monkeypatch.setattr(Location, "remove_folder", refuse)
    monkeypatch.setattr(Location, "size", fail)
    actions = {one.url: one for one in retention.apply_retention(plan, "tiny")}
    assert len(actions) == len(plan)
    item = actions[store[3].url]
    assert (item.action, item.size) == (PARTLY, 0)
    assert "Input/output error" in item.reason
