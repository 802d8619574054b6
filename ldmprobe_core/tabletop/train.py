"""Make the embedded model from nothing: ``python -m ldmprobe_core.tabletop.train``.

Stages, each resumed from its checkpoint in the working folder: render scenes, train the VAE, train
the labelers, train UNet and text encoder, measure everything on held-out scenes, write the model
folder and its card.  Needs ``ldmprobe[tabletop]`` for rendering; uses CUDA when present.

With ``--from FOLDER`` VAE and classifiers are those of a model folder, as they are, and the map
network, the UNet and the text encoder are trained further from its weights, each if its stage
(labelers, denoiser) is named.
"""

from __future__ import annotations

import argparse
import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.labelers.tabletop import JUDGE_WIDTHS, ClassLabeler, load_networks, map_labeler
from ldmprobe_core.tabletop import autoencoder, denoiser, labeler_training
from ldmprobe_core.tabletop.dataset import Dataset, render_dataset
from ldmprobe_core.tabletop.export import export, training_records
from ldmprobe_core.tabletop.measures.milestones import Milestones
from ldmprobe_core.tabletop.tokenizer import new_tokenizer

HELD_OUT = 2000
STAGES = ("render", "autoencoder", "denoiser", "labelers", "export")


def main() -> None:
    """Command line."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)

    if "render" in args.stages:
        render_dataset(
            work / "scenes",
            args.scenes,
            progress=lambda done: print(f"render: {done} scenes more", flush=True),
        )
    data = Dataset(work / "scenes", HELD_OUT)
    if args.stages == ["render"]:
        return

    begin: Path | None = args.begin
    if begin:
        vae = autoencoder.load_autoencoder(begin).to(device)
    else:
        recipe = replace(autoencoder.RECIPE, samples=args.autoencoder_samples)
        vae = autoencoder.train_autoencoder(data, work, device, recipe)
    latents = denoiser.latent_dataset(data, vae, work, device)

    trained: dict[str, Any] = {}
    if begin:
        trained = load_networks(begin, device)
        if "labelers" in args.stages:
            rebuilt = labeler_training.reconstructions(data, vae, latents, work, device)
            trained["maps"] = labeler_training.train_maps(
                data, rebuilt, work, device, labeler_training.MAP_CONTINUED, trained["maps"]
            )
    elif "labelers" in args.stages or "export" in args.stages:
        rebuilt = labeler_training.reconstructions(data, vae, latents, work, device)
        trained["maps"] = labeler_training.train_maps(data, rebuilt, work, device)
        for name, widths, classes in (
            ("class", None, labeler_training.CLASS_RECIPE),
            ("judge", JUDGE_WIDTHS, labeler_training.JUDGE_RECIPE),
        ):
            trained[name] = labeler_training.train_classifier(
                name, widths, data, rebuilt, work, device, classes
            )
    if "denoiser" in args.stages or "export" in args.stages:
        recipe = denoiser.CONTINUED if begin else denoiser.RECIPE
        recipe = replace(recipe, samples=args.denoiser_samples or recipe.samples)
        tokenizer = new_tokenizer()
        model = denoiser.load_denoiser(begin) if begin else denoiser.Denoiser(tokenizer)
        milestones = trained and Milestones(
            work / "milestones",
            copy.deepcopy(model).to(device),
            vae,
            data,
            latents,
            ClassLabeler(trained["judge"], device),
            map_labeler("foreground", trained["maps"], device),
        )
        denoiser.train_denoiser(
            data,
            vae,
            tokenizer,
            work,
            device,
            recipe,
            model,
            denoiser.CONTINUED_OBJECTIVE if begin else denoiser.Objective(),
            milestones or None,
        )
    if "export" in args.stages:
        before = training_records(begin) if begin else {}
        export(data, work, args.out, device, vae, model, trained, args.contact_sheet, before)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("training"), help="checkpoints and data")
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="the model folder to write")
    parser.add_argument(
        "--from",
        dest="begin",
        type=Path,
        metavar="FOLDER",
        help="a model folder: keep its VAE and classifiers, train its other networks further",
    )
    parser.add_argument("--contact-sheet", type=Path, default=Path("docs/contact-sheet.png"))
    parser.add_argument("--scenes", type=int, default=38_000)
    parser.add_argument("--autoencoder-samples", type=int, default=autoencoder.RECIPE.samples)
    parser.add_argument(
        "--denoiser-samples",
        type=int,
        help=f"default {denoiser.RECIPE.samples}, or {denoiser.CONTINUED.samples} more with --from",
    )
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    return parser.parse_args()


if __name__ == "__main__":
    main()
