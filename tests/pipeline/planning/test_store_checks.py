"""Stores that cannot take a run: a run itself, a folder in one, and a disk that is too small."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.pipeline.planning.store_checks import check_store, require_space
from ldmprobe_core.pipeline.prepare import prepare_run, run_in

Usage = namedtuple("Usage", "total used free")


def test_a_run_and_the_folders_in_it_are_no_stores(tiny_study, tmp_path):
    first, second = tiny_study(), tiny_study(name="second")
    run = prepare_run(first, str(tmp_path / "runs"))
    with pytest.raises(UserError, match=rf"'{run.url}': it is a run \({run.url}\)\. Fix: "):
        prepare_run(second, run.url)
    with pytest.raises(UserError, match=rf"/report/new': it is in a run \({run.url}\)\. Fix: "):
        prepare_run(second, f"{run.url}/report/new")
    (tmp_path / "link").symlink_to(f"{run.url}/labels")
    with pytest.raises(UserError, match=rf"link': it is in a run \({run.url}\)\. Fix: "):
        prepare_run(second, str(tmp_path / "link"))
    assert prepare_run(second, str(tmp_path / "runs")).exists


def test_a_folder_with_a_study_json_alone_is_a_store(tiny_study, tmp_path):
    (tmp_path / "study.json").write_text("{}")
    assert prepare_run(tiny_study(), str(tmp_path)).exists


@pytest.mark.parametrize(
    ("free", "needed", "words"),
    [
        (0, 100_000, "has 0.0 MB free and it needs 0.1 MB"),
        (399_000, 400_001, "has 0.3 MB free and it needs 0.5 MB"),
        (999_990_000, 1_010_000_000, "has 999.9 MB free and it needs 1.1 GB"),
        (2_500_000_000, 2_510_000_000, "has 2.5 GB free and it needs 2.6 GB"),
    ],
)
def test_sizes_of_a_disk_that_is_too_small_differ(tmp_path, monkeypatch, free, needed, words):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
    with pytest.raises(UserError, match=rf"^place {words}\. Fix: move$"):
        require_space(tmp_path / "new" / "folder", needed, "place", "it needs", "move")
    require_space(tmp_path, free, "place", "it needs", "move")


def test_a_disk_that_states_no_size_is_not_checked(tiny_study, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    plan = plan_study(tiny_study())
    check_store(replace(plan, bytes_of={"images": 10**15}), run_in(str(tmp_path), plan.study))
