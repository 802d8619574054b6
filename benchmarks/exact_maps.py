"""Probes against exact maps and against labelers' maps, on the same rendered scenes.

    python benchmarks/exact_maps.py [scenes] [store]

Renders scenes that no training saw, writes each picture with its exact maps, and carries one study
out twice: on exact maps, and on what the labelers say.  Prints the labelers' own score, the ceiling
of every score against labels, and both sets of scores.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.report.text import number
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import sample_scene

UNSEEN = 7_000_000


def write_scenes(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        scene = render(sample_scene(UNSEEN + i))
        name = folder / f"scene-{i:04d}"
        Image.fromarray(np.rint(scene.rgb * 255).astype(np.uint8)).save(f"{name}.png")
        mask = np.where(scene.foreground > 0.5, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(f"{name}.foreground.png")
        # as the labeler's depth is: relative, the logarithm less its mean over the picture
        depth = np.log(scene.depth)
        np.save(f"{name}.depth.npy", (depth - depth.mean()).astype(np.float32))
        np.save(f"{name}.shading.npy", scene.shading.astype(np.float32))


def carry_out(folder: Path, store: str, exact: bool) -> Summary:
    who = "maps" if exact else "tabletop"
    study = parse_study(
        {
            "name": "exact" if exact else "labeled",
            "source": "images",
            "images": {"folder": str(folder)},
            "sampling": {"steps": 15, "scheduler": "ddim", "batch": 16},
            "labels": {"foreground": who, "depth": who, "shading": who, "class": None},
            "controls": {"permuted_weights": False},
        }
    )
    run = prepare_run(study, store)
    for batch in range(len(run.study.batches(run.n_stored))):
        generate_batch(run.url, batch)
        label_batch(run.url, batch)
    for step in range(1, 16):
        for layer in run.probe_inputs:
            probe_cell(run.url, step, layer)
    return build_report(run, {})


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as place:
        store = sys.argv[2] if len(sys.argv) > 2 else f"{place}/runs"
        folder = Path(place) / "scenes"
        write_scenes(folder, count)
        exact, labeled = (carry_out(folder, store, truth) for truth in (True, False))
    print(f"{'':12} {'labeler itself':22} {'probes, exact maps':22} probes, labels")
    found = {}
    for prop in exact.properties:
        assert labeled.labelers is not None
        rows = {
            "labeler": labeled.labelers[prop].model_dump(),
            "exact": exact.properties[prop].best.model_dump(),
            "labels": labeled.properties[prop].best.model_dump(),
        }
        print(f"{prop:12} " + " ".join(f"{number(row):22}" for row in rows.values()))
        found[prop] = {name: round(row["mean"], 3) for name, row in rows.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
