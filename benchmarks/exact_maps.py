"""Probes fitted to exact maps and to labelers' maps, scored on the exact maps of rendered scenes.

    python -m benchmarks.exact_maps [scenes] [store] [--normals]

Renders scenes that no training saw, writes each image with its exact maps, and carries one study
out twice: on exact maps, and on what the labelers say.  Prints for each property, on test images:

* the labelers' own score against the exact maps;
* the best probe that was fitted to exact maps, scored on exact maps (the main figure);
* the best probe that was fitted to labels, scored on exact maps;
* the same probe scored on labels, as in a study of generated images;
* the paired differences of these, the partial scores, and the scores of position alone.

With ``--normals``, the study is of surface normals instead of foreground, depth and shading, and
the vectors of both summaries are printed: mean cosines, and mean angles in degrees.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.analysis.report.text import number
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.extensions.joint import components_of
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.tabletop.render import render
from ldmprobe_core.tabletop.scenes import sample_scene

UNSEEN = 7_000_000

MAPS = ("foreground", "depth", "shading")


def write_scenes(folder: Path, count: int) -> None:
    """Render scenes, and write each image with its exact maps."""
    folder.mkdir(parents=True)
    for i in range(count):
        scene = render(sample_scene(UNSEEN + i))
        name = folder / f"scene-{i:04d}"
        Image.fromarray(np.rint(scene.rgb * 255).astype(np.uint8)).save(f"{name}.png")
        mask = np.where(scene.foreground > 0.5, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(f"{name}.foreground.png")
        # The labeler gives log depth minus its mean in the image, so exact depth is saved alike.
        np.save(f"{name}.depth.npy", (scene.depth - scene.depth.mean()).astype(np.float32))
        np.save(f"{name}.shading.npy", scene.shading.astype(np.float32))
        for axis, component in enumerate(components_of("normals")):
            np.save(f"{name}.{component}.npy", scene.normal[..., axis].astype(np.float32))


def carry_out(folder: Path, store: str, exact: bool, props: Iterable[str]) -> tuple[Run, Summary]:
    """Carry out the study of the scenes, on exact maps or on the labelers' maps."""
    who = "maps" if exact else "tabletop"
    off: dict[str, str | None] = dict.fromkeys((*MAPS, "class"))
    study = parse_study(
        {
            "name": "exact" if exact else "labeled",
            "source": "images",
            "images": {"folder": str(folder)},
            "sampling": {"steps": 15, "scheduler": "ddim", "batch": 16},
            "labels": off | dict.fromkeys(props, who),
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
    return run, build_report(run, {})


def scores_on(truth: Run, fitted: Run, summary: Summary, prop: str) -> np.ndarray:
    """Score the best probe of one run against the labels of another, (metric, test sample)."""
    best = summary.properties[prop].best
    stored = fitted.open(f"probes/{best.layer}").sel(kind=best.kind, property=prop, step=best.step)
    probe = LinearProbe.from_dataset(stored.load())
    labels = label_set(truth)
    tokens = truth.read(f"activations/{best.layer}", "activation", step=best.step - 1)
    predicted = probe.predict(tokens[labels.heldout])
    cut = probe.cut if np.isfinite(probe.cut) else None
    test = np.array([truth.samples[i].split == "test" for i in labels.heldout])
    return labels.scorer(prop, tokens.shape[1:3]).scores(predicted, cut)[:, test]


def compare(
    exact_run: Run, exact: Summary, run: Run, labeled: Summary, prop: str
) -> dict[str, Interval | None]:
    """Compare the probes of both runs on exact maps and on labels, image by image."""
    study = exact_run.study
    members = [sample for sample in exact_run.samples if sample.split == "test"]
    interval = Bootstrap.of_samples(members, study.bootstrap, study.prompts.seed).interval
    of_exact = scores_on(exact_run, exact_run, exact, prop)
    of_labels = scores_on(exact_run, run, labeled, prop)
    on_labels = scores_on(run, run, labeled, prop)
    partial, metrics = property_of(prop).partial_metric, property_of(prop).metrics
    row = {
        "labeler on exact": (labeled.labelers or {}).get(prop),
        "exact on exact": interval(of_exact[0]),
        "labels on exact": interval(of_labels[0]),
        "less exact on exact": interval(of_labels[0] - of_exact[0]),
        "labels on labels": interval(on_labels[0]),
        "less labels on exact": interval(on_labels[0] - of_labels[0]),
        "position on exact": exact.properties[prop].controls.position.own_best.score,
        "position on labels": labeled.properties[prop].controls.position.own_best.score,
    }
    if partial is not None:
        names = ("exact on exact", "labels on exact", "labels on labels")
        for name, scores in zip(names, (of_exact, of_labels, on_labels), strict=True):
            row[f"{name}, partial"] = interval(scores[metrics.index(partial)])
    return row


def main() -> None:
    """Print the scores as a table and as JSON."""
    parser = argparse.ArgumentParser(description="Score probes on exact maps of rendered scenes.")
    parser.add_argument("scenes", type=int, nargs="?", default=200)
    parser.add_argument("store", nargs="?", default="")
    parser.add_argument("--normals", action="store_true")
    options = parser.parse_args()
    props = components_of("normals") if options.normals else MAPS
    with tempfile.TemporaryDirectory() as place:
        store = options.store or f"{place}/runs"
        folder = Path(place) / "scenes"
        write_scenes(folder, options.scenes)
        (exact_run, exact), (run, labeled) = (
            carry_out(folder, store, truth, props) for truth in (True, False)
        )
        if options.normals:
            for name, summary in (("fitted to exact maps", exact), ("fitted to labels", labeled)):
                print(name, json.dumps(summary.vectors["normals"].model_dump()))
            return
        rows = {prop: compare(exact_run, exact, run, labeled, prop) for prop in exact.properties}
    for prop, row in rows.items():
        print(prop, *(f"{name} {number(value)}" for name, value in row.items()), sep="; ")
    print(json.dumps({p: {n: v and v.model_dump() for n, v in r.items()} for p, r in rows.items()}))


if __name__ == "__main__":
    main()
