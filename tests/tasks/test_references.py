"""Tests of the references to runs and units that tasks exchange as JSON."""

from __future__ import annotations

from ldmprobe_core.pipeline.prepare import prepare_run
from tasks.references import RunRef, UnitRef, units_of
from tasks.study import accumulate, generate, label, probe

RUN = RunRef(url="/a", identity="one")
BATCH = UnitRef(run=RUN, verb="generate", index=(3,), title="batch 0003 · samples 24-31")
CELL = UnitRef(run=RUN, verb="probe", index=(3, "up_blocks.1.attentions.0"), title="cell")


def test_unit_ref_survives_json(tiny_study, tmp_path):
    """After a round trip through JSON, a number is a number and a layer's name is text."""
    for unit in (BATCH, CELL):
        assert UnitRef.model_validate_json(unit.model_dump_json()) == unit


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
    assert titles["probe"][5] == f"cell step 02 · {run.probe_inputs[1]}"
    assert len(titles["probe"]) == 3 * len(run.probe_inputs)
    for unit in (generate, label, accumulate, probe):
        assert unit.task_run_name == "{unit.title}"
