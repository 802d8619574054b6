"""Conclusions that other splits of the same prompts would have drawn from a finished run.

    python -m benchmarks.resplits RUN [splits] [--out FILE]

For a run that stores its activations, the prompts are divided into training, validation and test
prompts in other ways than in the run (30 by default).  Every split gets ridge probes with a
position term in every cell, from sums that are computed once for each prompt, and the rules of a
run: one layer for the whole curve, which is chosen on validation, and intervals that count the
choice of test prompts and re-splits of the other prompts, which every split has of its own.
Printed are the distribution of the onset and of the settled step, the share of the splits in which
they lie in the interval that the run printed, the share of the splits that call them determined,
with and without re-splits in their intervals, and the controls that splits do not exceed.  About 11
minutes of one CPU for the default study.

Only ridge probes are fitted, also to the foreground, where a run may have chosen logistic probes.
Of the controls, position, prompt and latents are compared, the latter without the correction for
the number of training samples.  Clean pixels and permuted weights are of a part of the samples, and
a permutation of labels pairs samples of different prompts, so these three cannot be divided by
prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldmprobe_core.analysis.controls.prompt_control import prompt_scores
from ldmprobe_core.analysis.controls.records import LARGEST_P
from ldmprobe_core.analysis.generalization.refits import RefitData, TestScorer
from ldmprobe_core.analysis.generalization.resplits import (
    ResplitCurves,
    Resplits,
    RunResplits,
)
from ldmprobe_core.analysis.parts.property_part import position_scores
from ldmprobe_core.analysis.records import (
    PropertyRecord,
    load_summary,
)
from ldmprobe_core.pipeline.groups import samples_in
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.inference.emergence import (
    SHARES,
    Crossing,
    crossing,
    relative_margins,
)
from ldmprobe_core.probing.inference.selection import choose_layer
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.measured import mean_map
from ldmprobe_core.probing.neighbourhood import probe_features
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.splits import SPLITS, SampleDraft, assign_splits


@dataclass(frozen=True)
class Split:
    """One split of the prompts, with the labels of all samples."""

    labels: LabelSet
    test: np.ndarray
    bootstrap: Bootstrap


@dataclass(frozen=True)
class Conclusion:
    """Conclusion of one split about a property.

    Attributes:
        layer: name of the layer of the curve.
        steps: crossing of the relative bars, by name (onset, settled), with the intervals that a
            run would print.
        alone: the same with intervals that do not count re-splits.
        not_beyond: controls that the best cell does not exceed.
    """

    layer: str
    steps: dict[str, Crossing]
    alone: dict[str, Crossing]
    not_beyond: frozenset[str]


def make_split(run: Run, labels: LabelSet, number: int) -> Split:
    """Draw split `number` (from 1) of a run's prompts, in the shares of its study."""
    study, samples = run.study, run.samples
    prompts = study.prompts.model_copy(update={"seed": study.prompts.seed + (number << 32)})
    drafts = [SampleDraft(s.prompt, s.seed, s.category, None, s.group) for s in samples]
    split_of = assign_splits(drafts, study.model_copy(update={"prompts": prompts}))
    names = np.array([split_of[sample.group] for sample in samples])
    train, validation, test = (np.flatnonzero(names == name) for name in SPLITS)
    means = {prop: mean_map(maps[train]) for prop, maps in labels.maps.items()}
    everything = np.arange(len(samples))
    return Split(
        LabelSet(labels.maps, means, train, validation, everything),
        test,
        Bootstrap.of_samples([samples[i] for i in test], study.bootstrap, study.prompts.seed),
    )


def by_prompt(run: Run, splits: list[Split]) -> Resplits:
    """Express splits as divisions of blocks of samples, one block for each prompt."""
    prompts = np.array([sample.group for sample in run.samples])
    blocks = [np.flatnonzero(prompts == name) for name in np.unique(prompts)]
    first = [block[0] for block in blocks]
    train, validation = (
        np.stack([np.isin(first, getattr(split.labels, part)) for split in splits])
        for part in ("train", "validation")
    )
    return Resplits(blocks, train, validation)


def cell_scores(
    run: Run, name: str, step: int, scorers: list[TestScorer], resplits: Resplits
) -> np.ndarray:
    """Headline scores of one cell's probes, (split, property, sample)."""
    activations = probe_features(name, run.read(f"activations/{name}", "activation", step=step))
    of_property = []
    for scorer in scorers:
        data = RefitData(activations, scorer.labels, scorer.prop, run.study.probes.penalties)
        predicted = resplits.predict(data, resplits.fit(data))
        of_property.append([scorer.scores(one, 0.0, headline_only=True)[0] for one in predicted])
    return np.stack(of_property, axis=1).astype(np.float32)


def tied_layers(run: Run, scores: dict[str, np.ndarray], split: Split) -> list[str]:
    """List the layers within one standard error of the best on a split's validation samples."""
    groups = np.array([run.samples[i].group for i in split.labels.validation])
    of_layers = np.stack([scores[name] for name in run.layers], axis=1)
    choice = choose_layer(of_layers[..., split.labels.validation], groups)
    return [run.layers[i] for i in choice.tied]


def conclude(
    run: Run, prop: str, scores: dict[str, np.ndarray], split: Split, others_of: ResplitCurves
) -> Conclusion:
    """Apply a run's rules to the scores of one split.

    Args:
        run: finished run.
        prop: name of the property.
        scores: (step, sample) by name of the layer or input control.
        split: split of the prompts.
        others_of: curves of re-splits of its training and validation prompts.
    """
    labels, test, bootstrap = split.labels, split.test, split.bootstrap
    tied, choices = tied_layers(run, scores, split), others_of.choices
    # As in a run: of the layers that are equally good, the one that most re-splits choose.
    chosen = max(tied, key=lambda name: choices.get(name, 0))
    of_layers = np.stack([scores[name] for name in run.layers], axis=1)
    on_validation = of_layers[..., labels.validation]
    position = position_scores(prop, labels, test)[0]
    curve = scores[chosen][:, test]
    margins = {name: relative_margins(curve, position, share) for name, share in SHARES.items()}
    shifts = {
        name: np.stack(
            [
                relative_margins(one, base, share)
                for one, base in zip(
                    others_of.deviations, others_of.position_deviations, strict=True
                )
            ]
        )
        for name, share in SHARES.items()
    }
    above = bootstrap.interval(curve[-1] - position).low
    emerges = above is not None and above > 0
    means = on_validation.mean(-1)
    best = of_layers[np.unravel_index(means.argmax(), means.shape)][test]
    others = {"position": position}
    for name in scores.keys() - set(run.layers):
        others[name] = scores[name][scores[name][:, labels.validation].mean(-1).argmax(), test]
    if run.has_prompt_embeddings and run.study.images is None:
        embedding = run.read("prompts", "embedding")
        of_prompt = prompt_scores(embedding, labels, prop, run.study.probes.penalties)
        others["prompt"] = of_prompt[0, test]
    return Conclusion(
        chosen,
        {
            n: crossing(m, bootstrap, shifts[n]) if emerges else Crossing()
            for n, m in margins.items()
        },
        {n: crossing(m, bootstrap) if emerges else Crossing() for n, m in margins.items()},
        frozenset(n for n, other in others.items() if not exceeds(best - other, bootstrap)),
    )


def exceeds(difference: np.ndarray, bootstrap: Bootstrap) -> bool:
    """Return whether a mean difference is above 0, by its interval and its p value."""
    low, p = bootstrap.interval(difference).low, bootstrap.p_value(difference)
    return low is not None and low > 0 and p is not None and p <= LARGEST_P


def figures_of(
    printed: PropertyRecord, conclusions: list[Conclusion], steps: int
) -> dict[str, Any]:
    """Compare what a run printed about a property with the conclusions of other splits."""
    figures: dict[str, Any] = {
        "layers": dict(Counter(one.layer for one in conclusions)),
        "printed not_beyond": sorted(printed.not_beyond),
        "not_beyond": {
            name: count / len(conclusions)
            for name, count in sorted(Counter(n for c in conclusions for n in c.not_beyond).items())
        },
    }
    for name in SHARES:
        record: Crossing = getattr(printed.emergence.probe.relative, name)
        found = [one.steps[name] for one in conclusions]
        low, high = record.low or steps + 1, record.high or steps + 1
        inside = [low <= (one.step or steps + 1) <= high for one in found]
        figures[name] = {
            "printed": record.model_dump(exclude={"distribution"}),
            "distribution": dict(sorted(Counter(str(one.step) for one in found).items())),
            "inside the printed interval": float(np.mean(inside)),
            "intervals that meet it": float(
                np.mean(
                    [
                        (one.low or steps + 1) <= high and (one.high or steps + 1) >= low
                        for one in found
                    ]
                )
            ),
            "determined": float(np.mean([one.determined for one in found])),
            "determined without re-splits": float(
                np.mean([one.alone[name].determined for one in conclusions])
            ),
        }
    return figures


def main() -> None:
    """Print the figures of each property, and write them as JSON if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("splits", nargs="?", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("build/resplits.json"))
    chosen = parser.parse_args()
    run = Run(chosen.run)
    if run.study.capture.keep == "statistics":
        parser.error(f"{chosen.run}: the run stores no training activations")
    summary, first = load_summary(run), label_set(run)
    everything = np.arange(len(run.samples))
    labels = LabelSet(first.maps, first.means, first.train, first.validation, everything)
    splits = [make_split(run, labels, number) for number in range(1, chosen.splits + 1)]
    resplits, started = by_prompt(run, splits), time.process_time()
    scorers = [TestScorer(labels, prop, everything) for prop in labels.maps]
    scores = {}
    for name in run.probe_inputs:
        if len(samples_in(run, f"activations/{name}")) < len(run.samples):
            continue
        cells = [cell_scores(run, name, step, scorers, resplits) for step in range(summary.steps)]
        scores[name] = np.stack(cells)
        print(f"{name}: {time.process_time() - started:.0f} CPU seconds", file=sys.stderr)
    conclusions: dict[str, list[Conclusion]] = {prop: [] for prop in labels.maps}
    for row, split in enumerate(splits):
        of_split = {
            prop: {name: all_[:, row, i] for name, all_ in scores.items()}
            for i, prop in enumerate(labels.maps)
        }
        tied = {prop: tied_layers(run, of_prop, split) for prop, of_prop in of_split.items()}
        redrawn = RunResplits(run, split.labels, tied, split.test)
        curves = redrawn.curves({layer: redrawn.scores(layer) for layer in redrawn.layers})
        for prop, of_prop in of_split.items():
            conclusions[prop].append(conclude(run, prop, of_prop, split, curves[prop]))
        print(f"split {row + 1}: {time.process_time() - started:.0f} CPU seconds", file=sys.stderr)
    figures = {}
    for prop, found in conclusions.items():
        figures[prop] = figures_of(summary.properties[prop], found, summary.steps)
        print(prop, json.dumps(figures[prop], indent=1), flush=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"splits": chosen.splits} | figures, indent=1))


if __name__ == "__main__":
    main()
