"""Carrying out whole runs in tests: plainly, without Prefect, and comparing what they left."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import zarr

from ldmprobe_core.analysis.kept_analysis import analyse
from ldmprobe_core.analysis.run_analysis import write_summary
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.pipeline.activation_sinks import ActivationBuffer
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.units import carry_out_units
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study


def small_study(name: str, model: Path, samples: int | None) -> Study:
    """Three steps and two layers of the tiny model."""
    return parse_study(
        {
            "name": name,
            "model": {"source": str(model)},
            "prompts": {"set": "tabletop", "samples": samples},
            "sampling": {"steps": 3, "batch": 4, "guidance": 2.0, "threads": 1},
            "labels": dict.fromkeys(("foreground", "depth", "shading", "class"), "tabletop"),
            "capture": {"layers": ["down_blocks.0.attentions.0.*.attn1", "mid_block.*.attn1"]},
            "bootstrap": {"resamples": 200},
        }
    )


HELD_OUT = 8
"""Held-out samples of `statistics_study`."""


def statistics_study(model: Path, keep: str, samples: int | None = 24, **changes: Any) -> Study:
    """Study of the tiny model with ridge probes alone, which can keep sums (`capture.keep`)."""
    content = small_study("sums", model, samples).model_dump(mode="json", by_alias=True)
    content["capture"] |= {"keep": keep, "accumulators": 2}
    heldout = None if samples is None else HELD_OUT
    content["probes"] = {"kinds": ["ridge"], "split": {"heldout": heldout}}
    content["controls"] = {"mlp": False}
    for key, value in changes.items():
        content[key] = {**content[key], **value}
    return parse_study(content)


def generated(
    sampler: PipelineSampler, samples: list[Sample], pictures: np.ndarray | None = None
) -> Any:
    """One batch with everything that the networks showed, in memory."""
    kept = ActivationBuffer()
    made = sampler.sample(samples, kept, pictures)
    shown = kept.pop()
    return SimpleNamespace(
        **vars(made), activations=shown["trained"], permuted=shown.get("permuted")
    )


def carry_out(study: Study, store: str) -> Run:
    """Every unit of a study in a plain loop."""
    run = prepare_run(study, store)
    carry_out_units(run)
    return run


def conclude(run: Run) -> Run:
    """Write a run's analysis and ``summary.json``, which mark it as finished, without figures."""
    write_summary(run, analyse(run, {"generate": 1.0}).summary)
    return run


def arrays(run: Run) -> dict[str, np.ndarray]:
    """Every array of a run by path."""
    root = zarr.open_group(run.store, mode="r", use_consolidated=True)
    return {
        path: member[...] for path, member in root.members(None) if isinstance(member, zarr.Array)
    }


def assert_same(one: Run, two: Run) -> None:
    """Two runs hold the same arrays, bit for bit."""
    a, b = arrays(one), arrays(two)
    assert a.keys() == b.keys()
    assert len(a) > 50
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        if a[path].dtype.kind == "T":
            assert (a[path] == b[path]).all(), path
        else:
            assert a[path].tobytes() == b[path].tobytes(), path
