"""Make the embedded model from nothing: ``python -m ldmprobe_core.tabletop.train``.

Stages, each resumed from its checkpoint in the working folder: render scenes, train the VAE, train
UNet and text encoder, train the labelers, measure everything on held-out scenes, write the model
folder and its card.  Needs ``ldmprobe[tabletop]`` for rendering; uses CUDA when present.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.labelers.tabletop import JUDGE_WIDTHS
from ldmprobe_core.tabletop import autoencoder, denoiser, labeler_training
from ldmprobe_core.tabletop.dataset import Dataset, render_dataset
from ldmprobe_core.tabletop.export import export
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

    recipe = replace(autoencoder.RECIPE, samples=args.autoencoder_samples)
    vae = autoencoder.train_autoencoder(data, work, device, recipe)
    latents = denoiser.latent_dataset(data, vae, work, device)

    if "labelers" in args.stages or "export" in args.stages:
        rebuilt = labeler_training.reconstructions(data, vae, latents, work, device)
        trained: dict[str, nn.Module] = {
            "maps": labeler_training.train_maps(data, rebuilt, work, device)
        }
        for name, widths, classes in (
            ("class", None, labeler_training.CLASS_RECIPE),
            ("judge", JUDGE_WIDTHS, labeler_training.JUDGE_RECIPE),
        ):
            trained[name] = labeler_training.train_classifier(
                name, widths, data, rebuilt, work, device, classes
            )
    if "denoiser" in args.stages or "export" in args.stages:
        recipe = replace(denoiser.RECIPE, samples=args.denoiser_samples)
        model = denoiser.train_denoiser(data, vae, new_tokenizer(), work, device, recipe)
    if "export" in args.stages:
        export(data, work, args.out, device, vae, model, trained, args.contact_sheet)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("training"), help="checkpoints and data")
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="the model folder to write")
    parser.add_argument("--contact-sheet", type=Path, default=Path("docs/contact-sheet.png"))
    parser.add_argument("--scenes", type=int, default=38_000)
    parser.add_argument("--autoencoder-samples", type=int, default=autoencoder.RECIPE.samples)
    parser.add_argument("--denoiser-samples", type=int, default=denoiser.RECIPE.samples)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    return parser.parse_args()


if __name__ == "__main__":
    main()
