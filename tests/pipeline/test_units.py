"""Units of a run: filled arrays, the order of stages, and a kind that another module adds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_helpers import arrays

from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.errors import RunError
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.pipeline.units import (
    UNITS,
    Unit,
    UnitOperations,
    carry_out_units,
    register_units,
)
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import UNIT_KINDS, UnitKind, register_unit_kind
from ldmprobe_core.storage.verify import clear_progress, find_corrupt_chunks
from tasks.references import RunRef, units_of


@pytest.fixture
def brightness():
    """Mean of every image and channel, one unit a batch; unregistered afterwards."""
    known_kinds, known_units = dict(UNIT_KINDS), dict(UNITS)

    def create_groups(schema):
        sizes = {"sample": len(schema.stored_samples), "rgb": 3}
        group = schema.group("brightness", "Mean of each image.")
        schema.array(group, "mean", sizes, {"sample": schema.batch}, "float32", "mean", "0..255")

    kind = register_unit_kind(
        UnitKind(
            verb="measure",
            progress="measured",
            dims=("batch",),
            groups=("brightness",),
            description="batch is measured",
            create_groups=create_groups,
        )
    )

    def carry_out(url, batch):
        run = Run(url)
        members = run.study.batches(run.n_stored)[batch]
        region = slice(members.start, members.stop)
        images = run.read("images", "image", sample=region)
        run.write("brightness", {"mean": images.mean((1, 2), dtype=np.float32)}, sample=region)
        run.progress.mark_done(kind, batch)
        return {"samples": len(images), "seconds": 0.0}

    register_units(
        UnitOperations(
            kind=kind,
            list_units=lambda run: [
                Unit((batch,), f"measure {batch}")
                for batch in range(len(run.study.batches(run.n_stored)))
            ],
            carry_out=carry_out,
            is_done=lambda run, batch: run.progress.is_done(kind, batch),
        )
    )
    yield
    for registry, known in ((UNIT_KINDS, known_kinds), (UNITS, known_units)):
        registry.clear()
        registry.update(known)


@pytest.mark.usefixtures("brightness")
def test_register_units_adds_a_kind_of_unit_everywhere(tiny_study, tmp_path):
    run = prepare_run(tiny_study(), str(tmp_path))
    units = units_of(RunRef(url=run.url, identity="one"), "measure")
    assert [unit.title for unit in units] == ["measure 0", "measure 1", "measure 2"]
    assert not any(unit.is_done for unit in units)
    assert list(find_corrupt_chunks(run)) == []  # a unit that is not done may lack its chunks
    carry_out_units(run)
    assert all(unit.is_done for unit in units)
    mean = run.read("brightness", "mean")
    np.testing.assert_allclose(mean, run.read("images", "image").mean((1, 2)), rtol=1e-5)

    chunk = Path(run.url) / "brightness/mean/c/1/0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0\1")
    (corrupt,) = find_corrupt_chunks(run)
    assert corrupt.key == "brightness/mean/c/1/0"
    assert clear_progress(run, [corrupt]).beyond_repair == []
    assert [unit.is_done for unit in units] == [True, False, True]
    carry_out_units(run)
    assert list(find_corrupt_chunks(run)) == []
    np.testing.assert_array_equal(run.read("brightness", "mean"), mean)


def test_register_unit_kind_refuses_a_group_of_another_kind():
    with pytest.raises(ValueError, match=r"'measure': 'label' already writes group 'labels'"):
        register_unit_kind(
            UnitKind(
                verb="measure", progress="m", dims=("batch",), groups=("labels",), description=""
            )
        )
    assert "measure" not in UNIT_KINDS


def test_carry_out_units_fills_every_array(finished_run):
    for path, values in arrays(finished_run).items():
        if path.startswith(("activations", "labels")) and values.dtype.kind == "f":
            assert np.isfinite(values).all(), path
        if path.startswith("progress/") and values.dtype == np.uint8:
            assert (values == 1).all(), path


def test_stages_refuse_to_start_before_the_units_that_they_read_are_done(finished_run, tmp_path):
    run = prepare_run(finished_run.study, str(tmp_path))
    with pytest.raises(RuntimeError, match="batch 0 cannot be labeled before it is generated"):
        label_batch(run.url, 0)
    for batch in (0, 1, 3):
        generate_batch(run.url, batch)
        label_batch(run.url, batch)
    with pytest.raises(
        RunError, match=r"1 unit of work is not labeled yet.*\(2,\).*verify .* --redo"
    ):
        probe_cell(run.url, 1, run.layers[0])
    generate_batch(run.url, 2)
    label_batch(run.url, 2)
    probe_cell(run.url, 1, run.layers[0])
    with pytest.raises(RunError, match=r"11 units of work are not probed yet.*\(0, 1\)"):
        build_report(run, {})
    assert not run.location.has("summary.json")
