"""Scores of probes of the embedded model at the milestones of its training.

    python -m benchmarks.learning_curve MILESTONES OUT.json

``MILESTONES`` is the folder with the averaged weights that a training of the denoiser has kept
(``SAMPLES.safetensors``; with ``SAMPLES.json``, the judge's figures of the same weights, if they
were measured).  Each of them becomes a model folder of its own, which the default study is run on,
without controls; a row of ``OUT.json`` has the scores of each property's own layer at steps 3 and
15 on the study's test images.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import ldmprobe as lp
from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.tabletop.autoencoder import load_autoencoder
from ldmprobe_core.tabletop.denoiser import Denoiser
from ldmprobe_core.tabletop.export import save_pipeline
from ldmprobe_core.tabletop.tokenizer import new_tokenizer

STEPS = (3, 15)
DRAWN = ("accuracy", "frechet", "edge", "frechet of renders", "edge of renders")
"""Figures of the generated images, and of renderings, that a row takes over."""

WITHOUT_CONTROLS = {
    "controls.shuffled_labels": False,
    "controls.permuted_weights": None,
    "controls.prompt": False,
    "controls.clean_pixels": False,
    "trajectory": {"samples": 1, "steps": [15], "training": 0},
}


def model_folder(weights: Path, folder: Path) -> Path:
    """Write the embedded model with a milestone's UNet and text encoder into a folder."""
    shutil.copytree(MODEL_FOLDER, folder, dirs_exist_ok=True)
    tokenizer = new_tokenizer()
    denoiser = Denoiser(tokenizer)
    denoiser.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
    save_pipeline(folder, load_autoencoder(MODEL_FOLDER), denoiser, tokenizer)
    return folder


def scores(run: lp.Run) -> dict[str, Any]:
    """Return scores by property and step: Dice of foreground, partial correlation of the others."""
    by_property: dict[str, Any] = {}
    for name, result in run.summary.properties.items():
        chosen = [entry for entry in result.steps if entry.step in STEPS]
        by_property[name] = {
            "layer": result.layer.name,
            **{
                str(entry.step): (entry.score if name == "foreground" else entry.value).model_dump()
                for entry in chosen
            },
        }
    return by_property


def main(milestones: str, out: str) -> None:
    """Run the study for each milestone and write the rows, in the order of samples."""
    rows = []
    for weights in sorted(Path(milestones).glob("*.safetensors")):
        samples = int(weights.stem)
        with tempfile.TemporaryDirectory() as temporary:
            folder = model_folder(weights, Path(temporary) / f"tabletop-{samples}")
            study = lp.load_study("tabletop", {"model.source": str(folder), **WITHOUT_CONTROLS})
            run = lp.run_study(study, str(Path(temporary) / "runs"))
            row = {"samples": samples, "scores": scores(run)}
        measured = weights.with_suffix(".json")
        if measured.exists():
            figures = json.loads(measured.read_text())
            row |= {key: figures[key] for key in DRAWN}
        rows.append(row)
        Path(out).write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
