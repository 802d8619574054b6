"""What other splits of the same prompts would have concluded from a finished run.

    python -m benchmarks.resplits RUN [splits] [--out FILE]

For a run that stores its activations, the prompts are divided into training, validation and test
prompts in other ways than in the run (30 by default).  Every split gets ridge probes with a
position term in every cell, from sums that are computed once for each prompt, and the rules of a
run: one layer for the whole curve,
which is chosen on validation, and intervals from the bootstrap of the test prompts.  Printed are
the distribution of the onset and of the settled step, the share of the splits in which they lie in
the interval that the run printed, and the controls that splits do not exceed.

Only ridge probes are fitted, also to the foreground, where a run may have chosen logistic probes.
Of the controls, position, prompt and the input controls are compared, the latter without the
correction for the number of training samples.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldmprobe_core.analysis.controls.prompt_control import prompt_scores
from ldmprobe_core.analysis.records import LARGEST_P, PropertyRecord, load_summary
from ldmprobe_core.analysis.summarize import position_scores
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.detection import best_cut
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.inference.emergence import (
    SHARES,
    Crossing,
    crossing,
    relative_margins,
)
from ldmprobe_core.probing.inference.selection import choose_layer
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe, predictions
from ldmprobe_core.probing.measured import mean_map
from ldmprobe_core.probing.neighbourhood import probe_features
from ldmprobe_core.probing.position import position_means, position_term, token_positions
from ldmprobe_core.probing.ranks import flatten_maps
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.splits import SPLITS, SampleDraft, assign_splits


@dataclass(frozen=True)
class Split:
    """One split of the prompts, with the labels of all samples."""

    labels: LabelSet
    test: np.ndarray
    bootstrap: Bootstrap


@dataclass(frozen=True)
class Conclusion:
    """What a split concludes about a property.

    Attributes:
        layer: name of the layer of the curve.
        steps: crossing of the relative bars, by name (onset, settled).
        not_beyond: controls that the best cell does not exceed.
    """

    layer: str
    steps: dict[str, Crossing]
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


def sums_by_prompt(
    activations: np.ndarray, targets: np.ndarray, prompts: np.ndarray
) -> list[SufficientStatistics]:
    """Sums of products of one cell's tokens, for each prompt."""
    grid = activations.shape[1], activations.shape[2]
    positions = token_positions(grid)
    return [
        SufficientStatistics.from_tokens(
            activations[members].reshape(-1, activations.shape[-1]),
            targets[members].reshape(-1, targets.shape[-1]),
            positions=np.resize(positions, len(members) * positions.size),
            n_positions=int(positions.max()) + 1,
        )
        for members in (np.flatnonzero(prompts == name) for name in np.unique(prompts))
    ]


def total(sums: list[SufficientStatistics], members: np.ndarray) -> SufficientStatistics:
    result = sums[members[0]]
    for index in members[1:]:
        result = result + sums[index]
    return result


def fit_split(
    sums: list[SufficientStatistics],
    member: np.ndarray,
    split: Split,
    grid: tuple[int, int],
    penalties: tuple[float, ...],
) -> list[LinearProbe]:
    """Fit a ridge probe with a position term to each property, as a run's cells do.

    Args:
        sums: result of `sums_by_prompt`.
        member: index of each sample's prompt among the sums, (sample,).
        split: split of the prompts.
        grid: number of tokens down and across.
        penalties: candidate penalties.
    """
    labels = split.labels
    tokens = [labels.mean_tokens(prop, grid) for prop in labels.maps]
    means = np.stack([position_means(mean) for mean in tokens], axis=1)
    train, validation = (
        total(sums, np.unique(member[part])).less_positions(means)
        for part in (labels.train, labels.validation)
    )
    probes = fit_ridge(RidgePath.from_statistics(train), validation, penalties)
    return [
        LinearProbe(probe.weight, probe.bias, probe.penalty, position=position_term(mean, "share"))
        for probe, mean in zip(probes, tokens, strict=True)
    ]


def cell_scores(
    run: Run, name: str, step: int, labels: LabelSet, splits: list[Split]
) -> np.ndarray:
    """Headline scores of one cell's probes, (split, property, sample)."""
    activations = probe_features(name, run.read(f"activations/{name}", "activation", step=step))
    grid = activations.shape[1], activations.shape[2]
    targets = np.stack([labels.tokens(prop, grid) for prop in labels.maps], axis=-1)
    prompts = np.array([sample.group for sample in run.samples])
    sums = sums_by_prompt(activations, targets, prompts)
    member = np.unique(prompts, return_inverse=True)[1]
    scores = np.empty((len(splits), len(labels.maps), len(prompts)), np.float32)
    for row, split in zip(scores, splits, strict=True):
        probes = fit_split(sums, member, split, grid, run.study.probes.penalties)
        predicted = predictions(activations, probes)
        for i, prop in enumerate(labels.maps):
            cut = None
            if property_of(prop).is_mask:
                train = split.labels.train
                cut = best_cut(
                    flatten_maps(predicted[train, ..., i]), flatten_maps(targets[train, ..., i])
                )
            metrics = property_of(prop).metrics
            scorer = labels.scorer(prop, grid)
            row[i] = scorer.scores(predicted[..., i], cut, metrics[:1])[0]
    return scores


def conclude(run: Run, prop: str, scores: dict[str, np.ndarray], split: Split) -> Conclusion:
    """Apply a run's rules to the scores of one split.

    Args:
        run: finished run.
        prop: name of the property.
        scores: (step, sample) by name of the layer or input control.
        split: split of the prompts.
    """
    labels, test, bootstrap = split.labels, split.test, split.bootstrap
    groups = np.array([run.samples[i].group for i in labels.validation])
    of_layers = np.stack([scores[name] for name in run.layers], axis=1)
    on_validation = of_layers[..., labels.validation]
    layer = choose_layer(on_validation, groups).layer
    position = position_scores(prop, labels, test)[0]
    curve = of_layers[:, layer, test]
    margins = {name: relative_margins(curve, position, share) for name, share in SHARES.items()}
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
        run.layers[layer],
        {n: crossing(m, bootstrap) if emerges else Crossing() for n, m in margins.items()},
        frozenset(n for n, other in others.items() if not exceeds(best - other, bootstrap)),
    )


def exceeds(difference: np.ndarray, bootstrap: Bootstrap) -> bool:
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
            "determined": float(np.mean([one.determined for one in found])),
        }
    return figures


def main() -> None:
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
    scores = {
        name: np.stack(
            [cell_scores(run, name, step, labels, splits) for step in range(summary.steps)]
        )
        for name in run.probe_inputs
    }
    figures = {}
    for i, prop in enumerate(labels.maps):
        conclusions = [
            conclude(run, prop, {name: all_[:, row, i] for name, all_ in scores.items()}, split)
            for row, split in enumerate(splits)
        ]
        figures[prop] = figures_of(summary.properties[prop], conclusions, summary.steps)
        print(prop, json.dumps(figures[prop], indent=1), flush=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps({"splits": chosen.splits} | figures, indent=1))


if __name__ == "__main__":
    main()
