"""The published protocol, carried out as its authors describe it, against ldmprobe on the same job.

    python benchmarks/paper_way.py [images] [steps] [--every-cell]

The job: foreground, depth and shading probes for every self-attention layer of the embedded model
at every sampler step, scored on the same held-out images with the same labels.  The published way
generates all images again for each (step, layer), hooks every layer, pickles the one it wants, and
trains by Adam for 30 epochs of batches of 4 on full-size maps; it is written here with plain torch
and diffusers, and given our batch size, which it does not have.  Ours generates once.

Without ``--every-cell`` the published way does one step's cells, and its time is multiplied: its
cells have nothing in common.  The images' labels are made beforehand and count for neither.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.figures import Figure, plain_study, report, without_controls
from ldmprobe_core import stages
from ldmprobe_core.cells import LabelSet
from ldmprobe_core.keeping import IntoStore
from ldmprobe_core.metrics import METRICS, score_maps
from ldmprobe_core.prompts import Sample
from ldmprobe_core.store import Run

EPOCHS, BATCH, RATE = 30, 4, 1e-3

Scores = dict[tuple[int, str, str], float]
"""(step, layer, property) to the mean headline score over held-out images."""


def published_way(
    pipeline: Any, samples: list[Sample], study: Any, labels: LabelSet, cells: list[tuple[int, str]]
) -> Scores:
    """Scores of the given cells (steps count from 1)."""
    found: Scores = {}
    with tempfile.TemporaryDirectory() as folder:
        for step, layer in cells:
            _generate(pipeline, samples, study, step, layer, Path(folder))
            files = [Path(folder) / f"{sample.index}.pkl" for sample in samples]
            x = torch.stack([pickle.loads(file.read_bytes()) for file in files])  # noqa: S301
            for prop in labels.maps:
                found[step, layer, prop] = _probe(x.float(), labels, prop)
    return found


def _generate(
    pipeline: Any, samples: list[Sample], study: Any, step: int, layer: str, folder: Path
) -> None:
    """All images once more; what one layer showed at one step, a pickle an image."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for name, module in pipeline.unet.named_modules():
        if name.endswith("attn1"):
            keep = seen.setdefault(name, [])
            hooks.append(module.register_forward_hook(lambda _m, _i, o, keep=keep: keep.append(o)))
    size = study.sampling.batch
    for a in range(0, len(samples), size):
        members = samples[a : a + size]
        for outputs in seen.values():
            outputs.clear()
        pipeline(
            prompt=[s.prompt for s in members],
            num_inference_steps=study.sampling.steps,
            guidance_scale=study.sampling.guidance,
            generator=[torch.Generator().manual_seed(s.seed) for s in members],
        )
        conditional = seen[layer][step - 1][-len(members) :]
        side = round(conditional.shape[1] ** 0.5)
        for sample, tokens in zip(members, conditional, strict=True):
            grid = tokens.reshape(side, side, -1).half()
            (folder / f"{sample.index}.pkl").write_bytes(pickle.dumps(grid))
    for hook in hooks:
        hook.remove()


def _probe(x: torch.Tensor, labels: LabelSet, prop: str) -> float:
    """One linear layer, its output grown to the image, against the full-size map."""
    foreground = prop == "foreground"
    torch.manual_seed(0)
    probe = nn.Linear(x.shape[-1], 2 if foreground else 1, bias=not foreground)
    optimizer = torch.optim.Adam(probe.parameters(), lr=RATE)
    maps = torch.from_numpy(labels.maps[prop])
    size = tuple(maps.shape[1:])

    def predicted(index: np.ndarray) -> torch.Tensor:
        return F.interpolate(probe(x[index]).permute(0, 3, 1, 2), size=size, mode="nearest")

    for _ in range(EPOCHS):
        order = labels.train[torch.randperm(len(labels.train)).numpy()]
        for a in range(0, len(order), BATCH):
            index = order[a : a + BATCH]
            if foreground:
                loss = F.cross_entropy(predicted(index), maps[index].long())
            else:
                loss = F.huber_loss(predicted(index)[:, 0], maps[index].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        output = predicted(labels.held)
    guess = (output.argmax(1) == 1 if foreground else output[:, 0]).numpy()
    truth = labels.maps[prop][labels.held]
    return float(np.nanmean(score_maps(prop, guess, truth, labels.means[prop])[0]))


def our_way(run: Run) -> None:
    """Generate once, write every layer at every step, fit and score every cell."""
    study, samples = run.study(), stages.samples_of(run)
    for number, members in enumerate(study.batches(run.stored)):
        region = slice(members.start, members.stop)
        with IntoStore(run, region) as into, stages.loaded(run) as (generator, _):
            generator.generate(samples[region], into, step_images=False)
        run.mark("generated", number)
    for step in range(1, study.sampling.steps + 1):
        for layer in run.probed:
            stages.probe_cell(run.url, step, layer)


def our_scores(run: Run) -> Scores:
    found: Scores = {}
    for prop in run.study().labels.maps:
        scores = run.open(f"scores/{prop}").score.sel(variant="real", metric=METRICS[prop][0])
        best = scores.mean("sample", skipna=True).max("kind")
        for step in best.step.values:
            for layer in best.layer.values:
                found[int(step), str(layer), prop] = float(best.sel(step=step, layer=layer))
    return found


def measure(images: int = 64, steps: int = 5, every_cell: bool = False) -> list[Figure]:
    study = without_controls(plain_study(images, steps))
    with tempfile.TemporaryDirectory() as folder:
        first = stages.prepare(study, f"{folder}/labels")
        for batch in range(len(study.batches(first.stored))):
            stages.generate_batch(first.url, batch)
            stages.label_batch(first.url, batch)
        labels, samples = stages.label_set(first), stages.samples_of(first)
        run = stages.prepare(study, f"{folder}/ours")
        for group in ("labels",):  # made beforehand for both
            data = {prop: first.read(group, prop) for prop in study.labels.maps}
            run.write(group, data)
        for batch in range(len(study.batches(run.stored))):
            run.mark("labeled", batch)
        with stages.loaded(run) as (generator, _):
            pipeline = generator.pipeline
            pipeline.set_progress_bar_config(disable=True)
        torch.set_num_threads(os.cpu_count() or 1)

        layers = run.layers
        cells = [(s, layer) for s in range(1, steps + 1) for layer in layers]
        done = cells if every_cell else cells[-len(layers) :]
        started = time.perf_counter()
        theirs = published_way(pipeline, samples, study, labels, done)
        published = (time.perf_counter() - started) * len(cells) / len(done)
        started = time.perf_counter()
        our_way(run)
        ours = time.perf_counter() - started
        mine = our_scores(run)
    held, worse = len(labels.held), []
    differences: dict[str, list[float]] = {}
    for key, value in theirs.items():
        differences.setdefault(key[2], []).append(mine[key] - value)
        if mine[key] < value:
            worse.append(key)
    figures = [
        Figure("paper_way", "time: published way / ours", published / ours, "x", at_least=50,
               note=f"{len(cells)} cells, {images} images, "
               + ("all done" if every_cell else f"{len(done)} cells done, the rest by proportion")),
        Figure("paper_way", "cells where its mean score is higher", len(worse) / len(theirs), "",
               note=f"of {len(theirs)} scores on {held} held-out images"),
    ]  # fmt: skip
    for prop, values in differences.items():
        figures.append(
            Figure("paper_way", f"{prop}: our score less its, mean over cells",
                   float(np.mean(values)), METRICS[prop][0],
                   note=f"least {min(values):+.3f}, most {max(values):+.3f}")
        )  # fmt: skip
    return figures


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    report(measure(*numbers, every_cell="--every-cell" in sys.argv))
