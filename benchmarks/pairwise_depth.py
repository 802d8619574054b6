"""Depth order of pairs of objects at the same height in the image, as probes read it.

    python -m benchmarks.pairwise_depth [--images 400] [--store build/pairwise_depth]
    python -m benchmarks.pairwise_depth --run RUN

The first form renders images of two or three objects (`ldmprobe_core.tabletop.arrangements`),
carries ``studies/several_objects.yaml`` out on them (or resumes it), and scores the run.  The
second form scores a finished run of such images.

With one object on a floor, position in the image predicts depth: what is lower is nearer.  So only
pairs of objects are scored whose centres differ by at most `TOLERANCE` of the image's height.  The
depth of an object is the mean over the pixels of its mask, in the exact map and in the prediction.
The score of a pair is 1 if the prediction puts the same object nearer as the exact map, 0 if the
other, and 0.5 if both predicted depths are equal.  Chance is 0.5.  Means are over pairs of the test
images, and intervals from the bootstrap of the run's summary, with the images as clusters.

Scores that depend on the step:

* ``probe``: the depth probe, of the layer and kind that the summary chose on validation;
* ``balanced``: the mean of two means of the probe's scores, over the pairs that position orders
  rightly and over those that it orders wrongly, so that position alone has 0.5 exactly;
* ``latents, balanced``: the same of the probe of 5 x 5 neighbourhoods of the noised latents, a
  control of the run;
* ``less latents``: paired difference of both.

Scores that do not:

* ``position``: the order in the mean depth map of the training images;
* ``larger is nearer``, ``lower edge is nearer``: the order of the objects' visible areas, and of
  the lowest pixels of their masks;
* ``ceiling``: the order in the exact map averaged over the tokens of the layer.

The same is printed for pairs at any heights, for contrast.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ldmprobe as lp
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.analysis.report.text import number
from ldmprobe_core.analysis.stored_probes import stored_probes
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.block_scores import upsample
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.neighbourhood import probe_features
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.readers.image_folder import images_hash
from ldmprobe_core.study.readers.value_types import user_path
from ldmprobe_core.tabletop.arrangements import IMAGES, MASK_FOLDER, write_arrangements

TOLERANCE = 0.05
"""Largest difference of the heights of two centres, as a fraction of the image's height."""

FEWEST_PIXELS = 12
"""Smallest visible area of an object, in pixels of the exact map; smaller ones have no pairs."""

STUDY = Path(__file__).parents[1] / "studies/several_objects.yaml"


def pairs_of(masks: np.ndarray, tolerance: float = TOLERANCE) -> list[tuple[int, int]]:
    """List the pairs of objects whose centres are at nearly the same height in the image.

    The centre of an object is the mean row of the pixels of its mask.

    Args:
        masks: (object, y, x) bool.
        tolerance: largest difference of the centres' rows, as a fraction of the image's height.
    """
    height = masks.shape[1]
    rows = [np.nonzero(mask)[0] for mask in masks]
    visible = [i for i, row in enumerate(rows) if len(row) >= FEWEST_PIXELS]
    return [
        (i, j)
        for i, j in itertools.combinations(visible, 2)
        if abs(rows[i].mean() - rows[j].mean()) <= tolerance * height
    ]


def object_means(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Average a map (y, x) over each mask of (object, y, x); NaN for an empty mask."""
    return np.array([values[mask].mean() if mask.any() else np.nan for mask in masks])


@dataclass(frozen=True)
class Pairs:
    """Pairs of objects of several images, with their exact order.

    Attributes:
        image: index of the image of each pair, (pair,).
        objects: indices of both objects of each pair, (pair, 2).
        difference: exact depth of the first object less that of the second, (pair,); not 0.
    """

    image: np.ndarray
    objects: np.ndarray
    difference: np.ndarray

    @classmethod
    def of_images(
        cls, depth: np.ndarray, masks: list[np.ndarray], tolerance: float = TOLERANCE
    ) -> Pairs:
        """Find the pairs of images; pairs of objects of equal exact depth are left out.

        Args:
            depth: exact depth, (image, y, x).
            masks: masks of the objects of each image, (object, y, x) bool.
            tolerance: see `pairs_of`; 1 finds the pairs at any heights.
        """
        rows = []
        for image, (exact, objects) in enumerate(zip(depth, masks, strict=True)):
            means = object_means(exact, objects)
            for i, j in pairs_of(objects, tolerance):
                if means[i] != means[j]:
                    rows.append((image, i, j, means[i] - means[j]))
        columns = np.array(rows, float).reshape(-1, 4)
        indices = columns[:, :3].astype(int)
        return cls(indices[:, 0], indices[:, 1:], columns[:, 3])

    def scores(self, values: list[np.ndarray]) -> np.ndarray:
        """Score the order of the objects of each pair in a value that increases with distance.

        Args:
            values: values of the objects of each image, (object,).

        Returns:
            (pair,) 1 if the order is that of the exact maps, 0.5 if both values are equal, else 0.
        """
        both = [values[i][pair] for i, pair in zip(self.image, self.objects, strict=True)]
        first, second = np.array(both, float).reshape(-1, 2).T
        return 0.5 + 0.5 * np.sign(first - second) * np.sign(self.difference)


def balance(scores: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Weight scores so that pairs that position orders rightly and wrongly count alike, (pair,).

    The mean of the result is the mean of both groups' mean scores.  Weights multiply the distance
    from chance, 0.5, so that a resample with other numbers of both groups keeps chance at 0.5.

    Args:
        scores: scores of the pairs, (pair,).
        position: scores of position alone for the same pairs, (pair,).

    Returns:
        (pair,) weighted scores; NaN where position has no order, or if one group is empty.
    """
    groups = [position == 1, position == 0]
    sizes = [int(group.sum()) for group in groups]
    weighted = np.full(len(scores), np.nan)
    if min(sizes) > 0:
        for group, size in zip(groups, sizes, strict=True):
            weighted[group] = 0.5 + sum(sizes) / (2 * size) * (scores[group] - 0.5)
    return weighted


def read_masks(run: Run, members: np.ndarray) -> list[np.ndarray]:
    """Read the masks of the objects of a run's source images, each (object, y, x) bool.

    Args:
        run: run of images that `write_arrangements` wrote.
        members: indices of the samples.

    Raises:
        UserError: the run has no source images or no depth, the images have changed, or masks are
            missing or differ from the labels in size.
    """
    images = run.study.images
    if images is None or "depth" not in run.study.labels.maps:
        raise UserError(
            "run: its study is not of the depth of source images. Fix: give a run of "
            "several_objects"
        )
    folder = user_path(images.folder)
    names = sorted(str(sample.source_image) for sample in run.samples)
    if images_hash(images, names, run.study.map_properties) != images.content_hash:
        raise UserError(f"images.folder: {folder} has changed since the run. Fix: restore it")
    size = run.read("labels", "depth", sample=members[:1]).shape[1:]
    masks = []
    for i in members:
        path = folder.parent / MASK_FOLDER / f"{Path(str(run.samples[i].source_image)).stem}.npy"
        if not path.is_file():
            raise UserError(f"images.folder: {path} is missing. Fix: restore it")
        masks.append(np.load(path))
        if masks[-1].shape[1:] != size:
            raise UserError(
                f"images.folder: {path} has {masks[-1].shape[1:]} pixels, and the model's images "
                f"have {size}. Fix: render images with --size {size[0]}"
            )
    return masks


def score_run(run: Run, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Score the order of pairs of objects in a finished run's test images.

    Args:
        run: finished run of images that `write_arrangements` wrote.
        tolerance: see `pairs_of`.

    Returns:
        the layer and its kind of probe, the number of test images, and the scores of the pairs at
        the same height and at any heights, by title.

    Raises:
        UserError: the run is not finished, or `read_masks` raises it.
    """
    depth = load_summary(run).properties.get("depth")
    labels, samples = label_set(run), run.samples[: run.n_stored]
    test = np.array([i for i, sample in enumerate(samples) if sample.split == "test"])
    masks = read_masks(run, test)
    if depth is None:
        raise UserError(f"run: {run.url} has no results of depth. Fix: write its report again")
    layer, exact = depth.layer, labels.maps["depth"][test]
    predicted = {"probe": predictions(run, layer.name, layer.kind, test)}
    if LATENTS in run.probe_inputs:
        predicted["latents"] = predictions(run, LATENTS, layer.kind, test)
    first = next(predictions(run, layer.name, layer.kind, test))
    ceiling = upsample(labels.tokens("depth", first.shape[1:])[test], exact.shape[1:])
    fixed = {
        "position": [object_means(labels.means["depth"], image) for image in masks],
        "larger is nearer": [-image.sum((1, 2)) for image in masks],
        "lower edge is nearer": [
            np.array([-np.nonzero(mask)[0].max(initial=0) for mask in image]) for image in masks
        ],
        "ceiling": [object_means(*both) for both in zip(ceiling, masks, strict=True)],
    }
    steps = [
        {
            name: [
                object_means(*both)
                for both in zip(upsample(tokens, exact.shape[1:]), masks, strict=True)
            ]
            for name, tokens in zip(predicted, of_step, strict=True)
        }
        for of_step in zip(*predicted.values(), strict=True)
    ]
    names = np.array([samples[i].group for i in test])
    return {"layer": layer.name, "kind": layer.kind, "test images": len(test)} | {
        name: score_pairs(run, Pairs.of_images(exact, masks, limit), names, fixed, steps)
        for name, limit in (("at the same height", tolerance), ("at any heights", 1.0))
    }


def predictions(run: Run, layer: str, kind: str, members: np.ndarray) -> Iterator[np.ndarray]:
    """Predict depth of samples with the stored probe of each step in turn, (sample, y, x)."""
    for step, probe in enumerate(stored_probes(run, layer, kind, "depth")):
        stored = run.read(f"activations/{layer}", "activation", step=step, sample=members)
        yield probe.predict(probe_features(layer, stored))


def score_pairs(
    run: Run,
    pairs: Pairs,
    names: np.ndarray,
    fixed: dict[str, list[np.ndarray]],
    steps: list[dict[str, list[np.ndarray]]],
) -> dict[str, Any]:
    """Average the scores of pairs, with intervals over images.

    Args:
        run: run with the settings of the bootstrap.
        pairs: pairs of the test images.
        names: name of each test image, (image,).
        fixed: values of the objects of each image by baseline, for baselines that do not depend on
            the step; ``position`` is among them.
        steps: values by ``probe`` and, if the run has them, ``latents``, for each step in turn.

    Returns:
        number of pairs and of images with a pair, the intervals of the baselines by name, and for
        each step in turn those of the probe and of the latents.

    Raises:
        UserError: there are no pairs.
    """
    if not len(pairs.image):
        raise UserError("images: no test image has a pair of objects. Fix: render more images")
    settings, seed = run.study.bootstrap, run.study.prompts.seed
    interval = Bootstrap(names[pairs.image], settings.resamples, settings.level, seed).interval
    baselines = {name: pairs.scores(values) for name, values in fixed.items()}
    rows = []
    for values in steps:
        row = {"probe": pairs.scores(values["probe"])}
        row["balanced"] = balance(row["probe"], baselines["position"])
        if "latents" in values:
            latents = balance(pairs.scores(values["latents"]), baselines["position"])
            row |= {"latents, balanced": latents, "less latents": row["balanced"] - latents}
        rows.append({name: interval(scores) for name, scores in row.items()})
    return {
        "pairs": len(pairs.image),
        "images": len(np.unique(pairs.image)),
        "baselines": {name: interval(scores) for name, scores in baselines.items()},
        "steps": rows,
    }


def print_scores(scores: dict[str, Any]) -> None:
    """Print the scores of `score_run` as tables in Markdown."""
    print(f"{scores['layer']} ({scores['kind']}), {scores['test images']} test images")
    for title in ("at the same height", "at any heights"):
        part = scores[title]
        print(f"\nPairs {title}: {part['pairs']} in {part['images']} images; chance 0.50")
        print(*(f"{name} {number(value)}" for name, value in part["baselines"].items()), sep="; ")
        columns = list(part["steps"][0])
        print(
            "", f"| step | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 1), sep="\n"
        )
        for step, row in enumerate(part["steps"], 1):
            print(f"| {step} | {' | '.join(number(row[name]) for name in columns)} |")


def carry_out(store: Path, count: int, overrides: list[str]) -> Run:
    """Render images into a store, unless it has them, and carry the study out on them.

    Args:
        store: folder for the images (``several_objects``) and the run (``runs``).
        count: number of images to render.
        overrides: texts ``key=value`` that replace values of the study.
    """
    folder = store / "several_objects"
    if not folder.exists():
        write_arrangements(folder, count)
    images = f"images.folder={json.dumps(str(folder / 'images'))}"
    study = lp.load_study(str(STUDY), [images, *overrides])
    return lp.run_study(study, str(store / "runs"))


def main(arguments: list[str] | None = None) -> None:
    """Print the scores as tables, and write them to ``scores.json`` in the store.

    Args:
        arguments: arguments of the command line; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=IMAGES, help="number of images to render")
    parser.add_argument("--store", type=Path, default=Path("build/pairwise_depth"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--run", help="finished run to score")
    args = parser.parse_args(arguments)
    try:
        run = (
            lp.open_run(args.run)
            if args.run
            else carry_out(args.store, args.images, args.overrides)
        )
        scores = score_run(run)
    except UserError as error:
        parser.error(str(error))
    print_scores(scores)
    args.store.mkdir(parents=True, exist_ok=True)
    content = json.dumps(scores, default=lambda interval: interval.model_dump(), indent=1)
    (args.store / "scores.json").write_text(content)


if __name__ == "__main__":
    main()
