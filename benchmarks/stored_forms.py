"""Effect of the stored form of activations (`capture.dtype`, `capture.pool`) on scores.

    python -m benchmarks.stored_forms [FOLDER] [--images 444] [--steps 15] [--out FILE]

The embedded model generates the same images from the same prompts and seeds once for every form,
and the same kinds of probes are fitted to each.  Prompts are divided such that, of 444 images,
about 300 are for training, 48 for validation, and 96 for tests.  Every form is compared with
float16 without pooling, which is the default: the same cell (step, layer) and metric, image by
image, with the interval of the mean difference over prompts and over categories, whichever is
wider.  The images of all forms must be equal, or the comparison is refused.

The cell that is named is the one that validation samples choose with the default form; the layer
of a step is chosen likewise.  Validation also chooses the kind of probe of each form and cell.
Beside it are the mean difference over all cells, and the cells with the largest loss and gain.
If FOLDER is given, it keeps the runs, so that an interrupted measurement can be resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.units import carry_out_units
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.conditions import PROBE_CONDITION
from ldmprobe_core.study.loading import load_study
from ldmprobe_core.study.properties import property_of

DEFAULT = "float16"
FORMS: dict[str, dict[str, str]] = {
    DEFAULT: {},
    "float32": {"capture.dtype": "float32"},
    "float16, 16 x 16 tokens averaged to 8 x 8": {"capture.pool": "{above: 8, by: 2}"},
}
"""Settings of each form in which it differs from the default."""

SHARES = {"train": 300, "validation": 48, "test": 96}
"""Numbers of samples in each split, in proportion to which all images are divided."""


@dataclass(frozen=True)
class Scores:
    """Scores of the probes of one property.

    Attributes:
        values: (step, layer, sample), of the kind of probe that validation chooses for each cell.
        is_test: whether a sample is a test sample, not a validation sample, (sample,).
        layers: names of the layers.
        metric: name of the metric.
    """

    values: np.ndarray
    is_test: np.ndarray
    layers: list[str]
    metric: str

    def chosen_cell(self) -> tuple[int, int]:
        """Indices of the step and layer with the highest mean over validation samples."""
        means = np.nanmean(self.values[..., ~self.is_test], -1)
        step, layer = np.unravel_index(means.argmax(), means.shape)
        return int(step), int(layer)

    def chosen_layer(self, step: int) -> int:
        """Index of the layer with the highest mean over validation samples at a step."""
        return int(np.nanmean(self.values[step][:, ~self.is_test], -1).argmax())


def settings(images: int, steps: int, form: dict[str, str]) -> list[str]:
    """Keys of a study without controls, with step images of one sample alone."""
    total = sum(SHARES.values())
    split = ", ".join(f"{name}: {count / total!r}" for name, count in SHARES.items())
    keys = {
        "prompts.samples": images,
        "sampling.steps": steps,
        "sampling.threads": 1,
        "labels.class": "null",
        "probes.split": f"{{{split}}}",
        "trajectory": f"{{samples: 1, training: 0, steps: [{steps}]}}",
        "controls": "{shuffled_labels: false, permuted_weights: false, latents: false, "
        "clean_pixels: false, mlp: false}",
        **form,
    }
    return [f"{key}={value}" for key, value in keys.items()]


def carried_out(folder: str, images: int, steps: int, form: dict[str, str]) -> Run:
    """Carry out the study of one form, or what is left of it."""
    run = prepare_run(load_study("tabletop", settings(images, steps, form)), folder)
    started = time.process_time()
    carry_out_units(run)
    print(f"{form or DEFAULT}: {time.process_time() - started:.0f} CPU s", file=sys.stderr)
    return run


def scores_of(run: Run, prop: str) -> Scores:
    """Read the scores of a property in its first metric."""
    metric = property_of(prop).metrics[0]
    stored = run.open(f"scores/{prop}", require_complete=True)
    score = stored.score.sel(condition=PROBE_CONDITION, metric=metric)
    score = score.transpose("kind", "step", "layer", "sample").sel(layer=run.layers)
    is_test = stored.split.values == "test"
    return chosen_kinds(score.values.astype(float), is_test, run.layers, metric)


def chosen_kinds(values: np.ndarray, is_test: np.ndarray, layers: list[str], metric: str) -> Scores:
    """Choose the kind of probe of each cell by the mean over validation samples.

    Args:
        values: scores, (kind, step, layer, sample); NaN for a kind that does not fit the property.
        is_test: whether a sample is a test sample, (sample,).
        layers, metric: see `Scores`.
    """
    heldout = values[..., ~is_test]
    defined = np.isfinite(heldout).any(-1)
    means = np.where(defined, np.nanmean(np.where(defined[..., None], heldout, 0), -1), -np.inf)
    best = means.argmax(0)[None, ..., None]
    return Scores(np.take_along_axis(values, best, 0)[0], is_test, layers, metric)


def compared(default: Scores, other: Scores, bootstrap: Bootstrap) -> dict[str, object]:
    """Compare the scores of a form with those of the default, on the test samples.

    Returns:
        mean differences (the form less the default) with intervals: ``best cell``, ``first step``
        and ``last step`` in the layer that is best there, and ``all cells``, whose mean over cells
        is taken image by image; ``own best cell``, which validation chooses with the form itself,
        less the default's best cell; and ``largest loss`` and ``largest gain`` of a cell.
    """
    differences = (other.values - default.values)[..., default.is_test]
    test = default.values[..., default.is_test]
    last = len(differences) - 1
    cells = {"best cell": default.chosen_cell()}
    cells |= {
        "first step": (0, default.chosen_layer(0)),
        "last step": (last, default.chosen_layer(last)),
    }
    found: dict[str, object] = {"metric": default.metric}
    for name, (step, layer) in cells.items():
        found[name] = {
            "step": step + 1,
            "layer": default.layers[layer],
            "default": numbers(bootstrap.interval(test[step, layer])),
            "difference": numbers(bootstrap.interval(differences[step, layer])),
        }
    step, layer = other.chosen_cell()
    own = other.values[step, layer, other.is_test] - test[default.chosen_cell()]
    found["own best cell"] = {
        "step": step + 1,
        "layer": default.layers[layer],
        "difference": numbers(bootstrap.interval(own)),
    }
    of_cells = np.nanmean(differences, -1)
    found["all cells"] = numbers(bootstrap.interval(np.nanmean(differences, (0, 1))))
    for name, index in (("largest loss", of_cells.argmin()), ("largest gain", of_cells.argmax())):
        step, layer = np.unravel_index(index, of_cells.shape)
        found[name] = {
            "step": int(step) + 1,
            "layer": default.layers[layer],
            "difference": numbers(bootstrap.interval(differences[step, layer])),
        }
    return found


def numbers(interval: Interval) -> list[float | None]:
    """Return the mean and the ends of an interval, rounded to five decimals."""
    ends = (interval.mean, interval.low, interval.high)
    return [None if value is None else round(value, 5) for value in ends]


def measure(folder: str, images: int, steps: int) -> dict[str, object]:
    """Carry out the study in every form, and compare the scores with those of the default.

    Raises:
        ValueError: the images of two forms differ, so that their scores cannot be compared.
    """
    default = carried_out(folder, images, steps, FORMS[DEFAULT])
    samples, study = default.samples, default.study
    is_test = scores_of(default, study.labels.maps[0]).is_test
    test = [samples[i] for i in default.read(f"scores/{study.labels.maps[0]}", "sample")[is_test]]
    bootstrap = Bootstrap.of_samples(test, study.bootstrap, seed=0)
    counts = {name: sum(one.split == name for one in samples) for name in SHARES}
    report: dict[str, object] = {
        "samples": counts, "steps": steps, "layers": len(default.layers),
        "prompts": bootstrap.groups, "categories": bootstrap.categories,
    }  # fmt: skip
    for name, form in FORMS.items():
        run = carried_out(folder, images, steps, form)
        if not np.array_equal(run.read("images", "image"), default.read("images", "image")):
            raise ValueError(f"{run.url}: its images differ from those of {default.url}")
        stored = sum(run.open(f"activations/{one}").activation.nbytes for one in run.layers)
        of_form: dict[str, object] = {"activations, MB": round(stored / 1e6, 1)}
        for prop in study.labels.maps if form else ():
            of_form[prop] = compared(scores_of(default, prop), scores_of(run, prop), bootstrap)
        report[name] = of_form
    return report


def main() -> None:
    """Print the differences as JSON, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--images", type=int, default=sum(SHARES.values()))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("build/stored_forms.json"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(chosen.folder or temporary, chosen.images, chosen.steps)
    text = json.dumps(figures, indent=1)
    print(text)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
