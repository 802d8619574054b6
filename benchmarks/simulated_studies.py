"""Simulated studies with known truth: how often ldmprobe's decisions about them are right.

    python -m benchmarks.simulated_studies [studies] [--out FILE]

Every study has 48 images of 24 prompts in 8 categories, 8 x 8 tokens, 2 layers and 6 steps, a depth
map and a foreground mask.  Activations, latents, clean pixels and embeddings are random arrays that
carry a known signal; probes, controls, the choice of cells, intervals and the decision are those of
a run.  Each kind of truth says what a property depends on:

    emerging    content of the image, which activations carry from step `EMERGENCE`
    gradual     the same content, which activations carry a little more clearly at each step
    position    the position in the image alone, apart from variation that nothing carries
    noise       a linear function of the 5 x 5 initial latents around a token
    noise, exact  the same, which one channel of the activations carries without noise
    text        a linear function of the prompt's embedding
    category    a map of the prompt's category, which the embedding names
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from ldmprobe_core.analysis.controls.prompt_control import prompt_scores
from ldmprobe_core.analysis.controls.same_prompt import same_prompt_scores
from ldmprobe_core.analysis.controls.training_size import (
    CorrectedDifference,
    corrected_difference,
    scores_of_halves,
    training_halves,
)
from ldmprobe_core.analysis.generalization.resplits import (
    ResplitCurves,
    Resplits,
    ResplitScorer,
    choose_curves,
)
from ldmprobe_core.analysis.parts.property_part import position_scores
from ldmprobe_core.analysis.property_scores import PropertyScores
from ldmprobe_core.probing.cell import CellResult, probe_activations
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.inference.emergence import SHARES, first_step_above
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.measured import mean_map
from ldmprobe_core.probing.neighbourhood import neighbourhoods, probe_features
from ldmprobe_core.study.conditions import LabelColumn
from ldmprobe_core.study.layers import CLEAN_PIXELS, LATENTS
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.properties import property_of
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.splits import SampleDraft, assign_splits

PROMPTS, SEEDS, CATEGORIES = 24, 2, 8
GRID, SIDE, STEPS, LAYERS, CHANNELS = 8, 16, 6, 2, 8
EMERGENCE = 3
"""First step at which activations carry the content of an emerging property."""

MATCHING = {
    "position": ("position",),
    "noise": (LATENTS,),
    "noise, exact": (LATENTS,),
    "text": ("prompt", "same_prompt"),
    "category": ("prompt", "same_prompt"),
}
"""Controls that explain a property of each kind, so that its probe must not exceed one of them."""

KINDS = ("emerging", "gradual", *MATCHING)


@dataclass(frozen=True)
class World:
    """Arrays of one simulated study.

    Attributes:
        samples: prompts, categories and splits.
        maps: depth (sample, y, x) and foreground, bool.
        layers: by network, activations (layer, step, sample, y, x, channel).
        inputs: latents and clean pixels, (step, sample, y, x, channel).
        embedding: of each sample's prompt, (sample, channel).
    """

    samples: list[Sample]
    maps: dict[str, np.ndarray]
    layers: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    embedding: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """Decisions about one property of one study.

    Attributes:
        not_beyond: controls that the probe does not exceed.
        curve: mean gain over position of the probe's curve, by step.
        onset: step, low, high and determined at the relative bar.
        settled: the same at 90 %.
        differences: mean difference to each control.
    """

    not_beyond: list[str]
    curve: list[float]
    onset: tuple[int | None, int | None, int | None, bool]
    settled: tuple[int | None, int | None, int | None, bool]
    differences: dict[str, float]


def study_of(seed: int, prop: str) -> Study:
    """Build the study of one property, with a seed."""
    off = {other: None for other in ("foreground", "depth") if other != prop}
    return parse_study(
        {
            "prompts": {"seed": seed},
            "labels": {"shading": None, "class": None, **off},
            "probes": {"kinds": ["ridge"], "penalties": [1e-5, 1e-3, 1e-1, 10.0]},
            "bootstrap": {"resamples": 400},
        }
    )


def samples_of(study: Study) -> list[Sample]:
    """List the samples of a study, several of each prompt, with their splits."""
    drafts = [
        SampleDraft(f"prompt {p:02d}", i, f"category {p % CATEGORIES}", None, f"prompt {p:02d}")
        for p in range(PROMPTS)
        for i in range(SEEDS)
    ]
    split_of = assign_splits(drafts, study)
    return [
        Sample(i, d.prompt, d.seed, d.category, split_of[d.group]) for i, d in enumerate(drafts)
    ]


def fields(rng: np.random.Generator, count: int, width: float = 1.5) -> np.ndarray:
    """Draw smooth random maps with mean 0 and variance 1, (count, GRID, GRID)."""
    maps = gaussian_filter(rng.standard_normal((count, GRID, GRID)), (0, width, width))
    maps -= maps.mean((1, 2), keepdims=True)
    return maps / maps.std((1, 2), keepdims=True)


def make_world(kind: str, study: Study) -> World:
    """Draw labels, activations and inputs of controls for one kind of truth."""
    rng = np.random.default_rng([KINDS.index(kind), study.prompts.seed])
    samples = samples_of(study)
    n = len(samples)
    prompt = np.repeat(np.arange(PROMPTS), SEEDS)
    centres = rng.standard_normal((CATEGORIES, 16))
    embeddings = centres[np.arange(PROMPTS) % CATEGORIES]
    if kind != "category":
        embeddings = embeddings + 0.7 * rng.standard_normal((PROMPTS, 16))
    noise = rng.standard_normal((n, GRID, GRID, 4))
    if kind.startswith("noise"):
        signal = neighbourhoods(noise, 5) @ rng.standard_normal(100)
    elif kind in ("text", "category"):
        signal = np.einsum("pk,kyx->pyx", embeddings, fields(rng, 16))[prompt]
    else:
        signal = fields(rng, n) + 0.7 * fields(rng, PROMPTS)[prompt]
    signal = signal / signal.std()
    y, x = np.mgrid[:GRID, :GRID] / (GRID - 1)
    ramp = 1.5 * y + 0.5 * np.sin(3 * x)
    rest = 0.5 * fields(rng, n)
    tokens = ramp + rest + (signal if kind != "position" else fields(rng, n))
    depth = tokens.repeat(2, 1).repeat(2, 2) + 0.1 * rng.standard_normal((n, SIDE, SIDE))
    depth = depth.astype(np.float32)
    maps = {"foreground": depth > np.quantile(depth, 0.7), "depth": depth}

    shares = {"emerging": np.arange(1, STEPS + 1) >= EMERGENCE, "position": np.zeros(STEPS)}
    shares["gradual"] = np.linspace(0.1, 1, STEPS) ** 2
    share = np.asarray(shares.get(kind, np.ones(STEPS)), float)
    layers = np.empty((LAYERS, STEPS, n, GRID, GRID, CHANNELS))
    for layer in range(LAYERS):
        distractors = np.stack([fields(rng, n) for _ in range(3)], axis=-1)
        where = np.broadcast_to(np.stack([y, x, np.sin(3 * x)], -1), (n, GRID, GRID, 3))
        for step in range(STEPS):
            blur = 0.0 if kind == "noise, exact" else 0.5 + 0.2 * layer
            carried = share[step] * signal + blur * rng.standard_normal(signal.shape)
            free = rng.standard_normal((n, GRID, GRID, 1))
            layers[layer, step] = np.concatenate([carried[..., None], where, distractors, free], -1)
        layers[layer] = layers[layer] @ np.linalg.qr(rng.standard_normal((CHANNELS,) * 2))[0]

    # Latents turn from the initial noise into a picture of content that the labels do not follow
    # exactly; the predicted clean image shows the same picture, blurred at early steps.
    picture = np.tanh(tokens[..., None] - ramp[..., None]) * rng.standard_normal(4)
    picture = picture + 3 * np.stack([fields(rng, n, 0.7) for _ in range(4)], axis=-1)
    level = np.linspace(0.0, 0.9, STEPS)
    latents = np.stack([np.sqrt(1 - a) * noise + np.sqrt(a) * picture for a in level])
    clean = np.stack(
        [a * picture[..., :3] + rng.standard_normal((n, GRID, GRID, 3)) for a in level]
    )
    kernels = rng.standard_normal((LAYERS, 100, CHANNELS)) / 10
    permuted = np.stack(
        [[np.tanh(neighbourhoods(one, 5) @ kernel) for one in latents] for kernel in kernels]
    )
    return World(
        samples, {p: maps[p] for p in study.labels.maps},
        {"trained": layers.astype(np.float16), "permuted": permuted.astype(np.float16)},
        {LATENTS: latents.astype(np.float16), CLEAN_PIXELS: clean.astype(np.float16)},
        embeddings[prompt],
    )  # fmt: skip


def label_set_of(world: World) -> LabelSet:
    """Return the label maps of a simulated study with its splits."""
    split = np.array([sample.split for sample in world.samples])
    train = np.flatnonzero(split == "train")
    return LabelSet(
        world.maps,
        {prop: mean_map(values[train]) for prop, values in world.maps.items()},
        train,
        np.flatnonzero(split == "validation"),
        np.flatnonzero(split != "train"),
    )


def property_scores(
    world: World, study: Study, labels: LabelSet, bootstrap: Bootstrap
) -> dict[str, PropertyScores]:
    """Fit and score all cells, as the units of a run do, and collect the scores by property."""

    all_columns = study.label_columns("trained")
    true_columns = study.label_columns("permuted")

    def cell(
        activations: np.ndarray, columns: tuple[LabelColumn, ...] = true_columns
    ) -> dict[str, CellResult]:
        return probe_activations(activations, labels, study, columns)

    columns_of = {"trained": all_columns, "permuted": true_columns}
    cells = {
        network: [[cell(one, columns_of[network]) for one in steps] for steps in layers]
        for network, layers in world.layers.items()
    }
    inputs = {
        name: [cell(probe_features(name, one)) for one in steps]
        for name, steps in world.inputs.items()
    }
    split = np.array([sample.split for sample in world.samples])
    is_test = split[labels.heldout] == "test"
    collected = {}
    for prop in world.maps:

        def scores(condition: Any, prop: str = prop) -> Any:
            rows = [
                [c[condition.assignment].scores[prop] for c in steps]
                for steps in cells[condition.network]
            ]
            return np.moveaxis(np.array(rows, float), (1, 0), (2, 3))

        draws = [[c["shuffled"].draws[prop] for c in steps] for steps in cells["trained"]]
        collected[prop] = PropertyScores(
            prop=property_of(prop),
            kinds=list(study.kinds),
            layers=[f"layer {i}" for i in range(LAYERS)],
            conditions=[c.name for c in study.conditions],
            controls=[c.name for c in study.conditions][1:],
            scores=np.stack([scores(condition) for condition in study.conditions]),
            inputs={
                name: np.moveaxis(np.array([c["true"].scores[prop] for c in steps], float), 0, 2)
                for name, steps in inputs.items()
            },
            draws={"shuffled_labels": np.moveaxis(np.array(draws, float), (1, 0), (1, 2))},
            is_test=is_test,
            validation_groups=np.array([world.samples[i].group for i in labels.validation]),
            bootstrap=bootstrap,
        )
    return collected


def corrected_differences(
    world: World, study: Study, labels: LabelSet, scores: PropertyScores
) -> dict[str, CorrectedDifference]:
    """Correct the differences to input controls for the number of training samples, by name."""
    prompts = np.array([sample.group for sample in world.samples])
    halves = training_halves(labels.train, prompts, study.prompts.seed)
    probe = "ridge", scores.prop.name

    def of_halves(activations: np.ndarray) -> np.ndarray:
        found = scores_of_halves(activations, labels, study, probe, halves)
        return found[:, scores.is_test]

    best = scores.best()
    of_probe = of_halves(world.layers["trained"][best[2], best[1]])
    corrected = {}
    for name, of_input in scores.inputs.items():
        kind, step = scores.best_of_input(name)
        difference = scores.of(best)[0] - of_input[kind, 0, step, scores.is_test]
        of_parts = of_probe - of_halves(probe_features(name, world.inputs[name][step]))
        corrected[name] = corrected_difference(difference, of_parts)
    return corrected


def curves_of_resplits(
    world: World, study: Study, labels: LabelSet, scores: PropertyScores, test: np.ndarray
) -> ResplitCurves | None:
    """Fit the tied layers on other divisions of the prompts, as `RunResplits` does for a run."""
    prompts, prop = np.array([sample.group for sample in world.samples]), scores.prop.name
    resplits = Resplits.draw(labels, prompts, study.prompts.seed)
    if resplits is None:
        return None
    scorer = ResplitScorer(labels, prop, study.probes.penalties, resplits, test)
    cells = [
        [scorer.scores(one) for one in world.layers["trained"][scores.layers.index(name)]]
        for name in scores.tied_layers
    ]
    on_test, on_validation = (
        np.stack([[cell[part] for cell in steps] for steps in cells]) for part in (0, 1)
    )
    members = prompts[resplits.samples]
    position = scorer.position_scores((GRID, GRID))
    return choose_curves(
        scores.tied_layers, on_test, on_validation, members, position, resplits.inflation
    )


def decide(kind: str, prop: str, seed: int) -> Outcome:
    """Carry one study out, and return what is decided about each property."""
    threadpool_limits(1, user_api="blas")
    torch.set_num_threads(1)
    study = study_of(seed, prop)
    world = make_world(kind, study)
    labels = label_set_of(world)
    test = np.array([i for i in labels.heldout if world.samples[i].split == "test"])
    bootstrap = Bootstrap.of_samples([world.samples[i] for i in test], study.bootstrap, seed)
    scores = property_scores(world, study, labels, bootstrap)[prop]
    position = position_scores(prop, labels, test)
    prompt = prompt_scores(world.embedding, labels, prop, study.probes.penalties)
    controls = {"prompt": prompt[:, scores.is_test]}
    _, step, layer = scores.best()
    activations = world.layers["trained"][layer, step]
    fitted = probe_activations(activations, labels, study, study.label_columns("permuted"))
    probe = cast(LinearProbe, fitted["true"].probes["ridge", prop])
    of_others = same_prompt_scores(
        probe.predict(activations[test]), probe.cut, labels, prop, test,
        np.array([world.samples[i].group for i in test]),
    )  # fmt: skip
    if of_others is not None:
        controls["same_prompt"] = of_others
    unlabeled = np.full((STEPS, len(test)), np.nan)
    names = ("trajectory", "clean", "trajectory_recalibrated", "clean_recalibrated")
    resplits = curves_of_resplits(world, study, labels, scores, test)
    curves = scores.curves(position[0], dict.fromkeys(names, unlabeled), resplits=resplits)
    truth = world.maps[prop][test] if scores.prop.is_mask else None
    corrected = corrected_differences(world, study, labels, scores)
    record = scores.to_record(position, controls, curves, truth, 0.0, {}, corrected)
    bar = record.emergence.probe.relative
    return Outcome(
        record.not_beyond,
        np.nanmean(curves.probe - position[0], axis=1).tolist(),
        (bar.onset.step, bar.onset.low, bar.onset.high, bar.onset.determined),
        (bar.settled.step, bar.settled.low, bar.settled.high, bar.settled.determined),
        {n: c.difference.mean or 0.0 for n, c in record.controls.by_name().items()},
    )


def first_step(curve: np.ndarray, share: float) -> int:
    """Find the true step from which the mean gain stays at or above a share of the final gain."""
    return int(first_step_above(curve - share * curve[-1]))


def rates(kind: str, outcomes: list[Outcome]) -> dict[str, float]:
    """Compute the share of the studies in which each decision about a kind of truth is right."""
    count = len(outcomes)
    if kind in MATCHING:
        named = Counter(name for outcome in outcomes for name in outcome.not_beyond)
        matched = sum(any(n in o.not_beyond for n in MATCHING[kind]) for o in outcomes)
        shares = {name: named[name] / count for name in MATCHING[kind]}
        return {"not beyond the matching control": matched / count} | shares
    found = {"beyond all controls": sum(not o.not_beyond for o in outcomes) / count}
    curve = np.mean([outcome.curve for outcome in outcomes], axis=0)
    for name, share in SHARES.items():
        true = first_step(curve, share)
        found[f"{name}: true step"] = true
        steps = [getattr(outcome, name) for outcome in outcomes]
        covered = [(low or STEPS + 1) <= true <= (high or STEPS + 1) for _, low, high, _ in steps]
        defined = [step is not None for step, *_ in steps]
        pairs = list(zip(steps, covered, defined, strict=True))
        found[f"{name}: interval covers it"] = sum(c for _, c, d in pairs if d) / max(
            sum(defined), 1
        )
        found[f"{name}: not determined"] = sum(not determined for *_, determined in steps) / count
        wrong = sum(determined and not c for (*_, determined), c, _ in pairs)
        found[f"{name}: determined, but does not cover it"] = wrong / count
    return found


def measure(
    keys: list[tuple[str, str]], studies: int, workers: int | None = None
) -> Iterator[dict[tuple[str, str], list[Outcome]]]:
    """Carry studies of several kinds and properties out, and yield all outcomes after each seed."""
    outcomes: dict[tuple[str, str], list[Outcome]] = {key: [] for key in keys}
    tasks = [(*key, seed) for seed in range(studies) for key in keys]
    with ProcessPoolExecutor(workers) as pool:
        results = zip(tasks, pool.map(decide, *zip(*tasks, strict=True)), strict=True)
        for done, ((kind, prop, _), outcome) in enumerate(results, start=1):
            outcomes[kind, prop].append(outcome)
            if done % len(keys) == 0:
                yield outcomes


def figures_of(outcomes: dict[tuple[str, str], list[Outcome]]) -> dict[str, Any]:
    """Compute rates and mean differences to the controls, by kind and property."""
    return {
        f"{kind}, {prop}": {
            "studies": len(some),
            "rates": rates(kind, some),
            "differences": {
                name: float(np.mean([outcome.differences[name] for outcome in some]))
                for name in some[0].differences
            },
        }
        for (kind, prop), some in outcomes.items()
    }


def main() -> None:
    """Print the rates, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("studies", nargs="?", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--properties", nargs="+", default=["depth", "foreground"])
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path, default=Path("build/simulated_studies.json"))
    chosen = parser.parse_args()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    keys = [(kind, prop) for prop in chosen.properties for kind in chosen.kinds]
    for outcomes in measure(keys, chosen.studies, chosen.workers):
        figures = figures_of(outcomes)
        chosen.out.write_text(json.dumps(figures, indent=1))
    for name, figure in figures.items():
        text = "; ".join(f"{rate} {value:.3g}" for rate, value in figure["rates"].items())
        print(f"{name}, {figure['studies']} studies: {text}")
        print("   ", {rate: round(value, 3) for rate, value in figure["differences"].items()})


if __name__ == "__main__":
    main()
