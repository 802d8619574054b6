"""Sampling defaults and words that a model folder states about itself."""

import json
import shutil
from functools import partial

import huggingface_hub
import pytest

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.readers.model_record import RECORD, ModelRecord, read_model_record
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Sampling


def test_study_takes_what_it_leaves_out_from_the_embedded_model():
    stated = json.loads((MODEL_FOLDER / RECORD).read_text())["sampling"]
    assert stated == {"scheduler": "ddim", "steps": 15, "guidance": 3.0}
    for study in (Study(), parse_study({"sampling": {}}), parse_study({"model": {}})):
        sampling = study.sampling
        assert (sampling.scheduler, sampling.steps, sampling.guidance) == ("ddim", 15, 3.0)
    part = parse_study({"sampling": {"scheduler": "lms", "guidance": 1.0}}).sampling
    assert (part.scheduler, part.steps, part.guidance) == ("lms", 15, 1.0)
    assert Study(sampling=Sampling(steps=4)).sampling == Sampling(
        scheduler="ddim", steps=4, guidance=3.0
    )
    assert parse_study({"sampling": stated}).hash == Study().hash
    written = {**json.loads(load_study("tabletop").to_json()), "sampling": {}}
    assert parse_study(written).hash != load_study("tabletop", ["sampling.batch=4"]).hash
    assert parse_study(written).hash == load_study("tabletop").hash


def test_study_takes_what_it_leaves_out_from_a_folder(tmp_path):
    def sampling():
        return parse_study({"model": {"source": str(tmp_path)}}).sampling

    assert sampling() == Sampling()
    (tmp_path / "scheduler").mkdir()
    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text('{"_class_name": "PNDMScheduler"}')
    assert sampling() == Sampling()
    config.write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    assert sampling() == Sampling(scheduler="flow")
    (tmp_path / RECORD).write_text('{"sampling": {"scheduler": "euler", "steps": 4}}')
    assert sampling() == Sampling(scheduler="euler", steps=4)


def test_study_takes_what_it_leaves_out_from_the_hubs_cache(tmp_path, monkeypatch):
    """The cache of one file of a model, as the hub's client lays it out."""
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / RECORD).write_text('{"sampling": {"steps": 4}}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    look_up = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", partial(look_up, cache_dir=tmp_path)
    )
    assert parse_study({"model": {"source": "someone/model"}}).sampling.steps == 4


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"samplng": {}}', '{"sampling": {"batch": 4}}', '{"sampling": {"steps": 0}}'],
)
def test_a_record_that_cannot_be_used_is_one_sentence(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=rf"model\.source: .*{RECORD} is not a usable record.*Fix"):
        parse_study({"model": {"source": str(tmp_path)}})


def test_a_damaged_record_is_one_sentence_where_the_study_states_all_that_it_would(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, folder)
    (folder / RECORD).write_text('{"words": null}')
    stated = {"scheduler": "ddim", "steps": 3, "guidance": 2.0}
    study = parse_study(
        {"model": {"source": str(folder)}, "sampling": stated, "prompts": {"samples": 6}}
    )
    with pytest.raises(UserError, match=rf"model\.source: .*{RECORD} is not a usable record.*Fix"):
        plan_study(study)


def test_words_of_a_record_are_compared_in_lowercase():
    assert ModelRecord(words=("A", "Red")).unknown_words("a RED lemon") == ("lemon",)


def test_unknown_words_of_a_text():
    record = ModelRecord(words=("a", "red", "lemon"))
    assert record.unknown_words("A red Lemon, a RED lemon.") == ()
    assert record.unknown_words("a rotten lemon-tree, isn't it; Zürich 7 rotten") == (
        "rotten",
        "lemon-tree",
        "isn't",
        "it",
        "zürich",
        "7",
    )
    assert record.unknown_words("a red \U0001f642, lemon") == ("\U0001f642",)
    signs = "a \u2665\ufe0f lemon + (red): 'a' \u2014 \u20ac, \u2192! a_red \u2665\ufe0f... +"
    assert record.unknown_words(signs) == ("\u2665\ufe0f", "+", "\u20ac", "\u2192")
    assert ModelRecord().unknown_words("anything at all") == ()
    assert read_model_record("tabletop").unknown_words("an orange on a gray floor, blue wall") == ()


@pytest.mark.parametrize("path", ["~no-such-user/x", "~no-such-user", "a" * 250 + "/b/c"])
def test_source_in_the_home_of_an_unknown_user_is_no_model(path):
    assert read_model_record(path) == ModelRecord()
    with pytest.raises(UserError, match=r"model\.source .*: there is no such folder\. Fix"):
        plan_study(parse_study({"model": {"source": path}}))
