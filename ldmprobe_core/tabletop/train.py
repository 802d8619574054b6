"""Train the embedded model from scratch: ``python -m ldmprobe_core.tabletop.train``.

Stages, each resumed from its checkpoint in the working folder: render scenes, train the VAE, train
the labelers, train UNet and text encoder, measure the networks on held-out scenes, write the model
folder and its card.  Rendering needs ``ldmprobe[tabletop]``; CUDA is used if available.

With ``--from FOLDER``, VAE and classifiers are taken from a model folder unchanged.  The map
network (stage labelers), the UNet and the text encoder (stage denoiser) are trained further from
its weights if their stages are selected.  A working folder belongs to the weights of one folder.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.tabletop import JUDGE_WIDTHS, ClassLabeler, load_networks, map_labeler
from ldmprobe_core.labelers.tabletop_networks import ClassNetwork, MapNetwork
from ldmprobe_core.study.readers.image_folder import file_digest
from ldmprobe_core.tabletop import autoencoder, denoiser, labeler_training
from ldmprobe_core.tabletop.dataset import Dataset, render_dataset
from ldmprobe_core.tabletop.export import export, training_records
from ldmprobe_core.tabletop.measures.milestones import Milestones, save_average
from ldmprobe_core.tabletop.tokenizer import new_tokenizer

HELD_OUT = 2000
STAGES = ("render", "autoencoder", "denoiser", "labelers", "export")


def main() -> None:
    """Run the stages that the command line selects."""
    args = _arguments()
    if "render" in args.stages and args.scenes <= HELD_OUT:
        raise UserError(
            f"--scenes: {args.scenes} scenes leave none to train on, since {HELD_OUT} are held out "
            "for measurements. Fix: give more"
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work: Path = args.work
    begin: Path | None = args.begin
    if begin and not (begin / "vae").is_dir():
        raise UserError(f"--from: {begin} is no model folder. Fix: give a folder that has a vae/")
    work.mkdir(parents=True, exist_ok=True)
    require_same_origin(work, begin, new_denoiser=args.new_denoiser)

    if "render" in args.stages:
        render_dataset(
            work / "scenes",
            args.scenes,
            progress=lambda done: print(f"render: {done} scenes more", flush=True),
        )
    data = Dataset(work / "scenes", HELD_OUT)
    if args.stages == ["render"]:
        return

    if begin:
        vae = autoencoder.load_autoencoder(begin).to(device)
    else:
        recipe = replace(autoencoder.AUTOENCODER_RECIPE, samples=args.autoencoder_samples)
        vae = autoencoder.train_autoencoder(data, work, device, recipe)
    latents = denoiser.latent_dataset(data, vae, work, device)

    trained = _labeler_networks(args, data, vae, latents, device)
    if "denoiser" in args.stages or "export" in args.stages:
        model = _train_denoiser(args, data, vae, latents, device, trained)
    if "export" in args.stages:
        before = training_records(begin) if begin else {}
        export(data, work, args.out, device, vae, model, trained, args.contact_sheet, before)


def require_same_origin(work: Path, begin: Path | None, *, new_denoiser: bool = False) -> None:
    """Check that the checkpoints in a working folder began from these weights, and record them.

    Otherwise latents of another VAE would be reused, and a finished training would stand for the
    one that is asked for.

    Args:
        work: working folder.
        begin: model folder that the training begins from; None for a training from scratch.
        new_denoiser: True if the denoiser of the model folder is not used.

    Raises:
        UserError: the working folder has checkpoints of a training that began otherwise.
    """
    # The suffix is not .json, since all such files there are records of trainings.
    record, scratch = work / "origin.txt", "new weights\n"
    origin = scratch
    if begin:
        files = sorted(begin.glob("*/*.safetensors"))
        lines = [f"{file_digest(file).hex()}  {file.relative_to(begin)}" for file in files]
        origin = "\n".join([*lines, *(["new denoiser"] if new_denoiser else []), ""])
    # Working folders of a training from scratch may lack the record, which earlier versions did not
    # write.
    known = record.read_text("utf-8") if record.is_file() else scratch
    kept = sorted(
        path.name for path in work.iterdir() if path.suffix in (".npy", ".part", ".safetensors")
    )
    if kept and known != origin:
        raise UserError(
            f"--work: {work} holds checkpoints ({', '.join(kept):.120}) of a training that did not "
            f"begin from {begin or 'nothing'} as it is now. Fix: give another folder, or remove "
            "these files"
        )
    record.write_text(origin, "utf-8")


def _lower_priority() -> None:
    """Give this process the lowest CPU priority, because a training takes hours."""
    os.nice(19)
    # Linux divides the CPU among sessions (autogroups) first, and nice values only act within one.
    # Without a lower autogroup priority, a training in its own session would get a full share.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


def _labeler_networks(
    args: argparse.Namespace,
    data: Dataset,
    vae: AutoencoderKL,
    latents: np.ndarray,
    device: torch.device,
) -> dict[str, nn.Module]:
    """Labeler networks by file name: loaded, trained or trained further, depending on stages."""
    begin, work = args.begin, args.work
    if begin:
        networks = load_networks(begin, device)
        if "labelers" in args.stages:
            rebuilt = labeler_training.reconstructions(data, vae, latents, work, device)
            networks["maps"] = labeler_training.train_maps(
                data, rebuilt, work, device, labeler_training.MAP_CONTINUED, networks["maps"]
            )
        return networks
    if not {"labelers", "export"} & set(args.stages):
        return {}
    rebuilt = labeler_training.reconstructions(data, vae, latents, work, device)
    networks = {"maps": labeler_training.train_maps(data, rebuilt, work, device)}
    for name, widths, recipe in (
        ("class", None, labeler_training.CLASS_RECIPE),
        ("judge", JUDGE_WIDTHS, labeler_training.JUDGE_RECIPE),
    ):
        networks[name] = labeler_training.train_classifier(
            name, widths, data, rebuilt, work, device, recipe
        )
    return networks


def _train_denoiser(
    args: argparse.Namespace,
    data: Dataset,
    vae: AutoencoderKL,
    latents: np.ndarray,
    device: torch.device,
    labelers: dict[str, nn.Module],
) -> denoiser.Denoiser:
    """Train UNet and text encoder; measure milestones if there are labelers for it."""
    begin = None if args.new_denoiser else args.begin
    recipe = denoiser.DENOISER_CONTINUED if begin else denoiser.DENOISER_RECIPE
    recipe = replace(recipe, samples=args.denoiser_samples or recipe.samples)
    tokenizer = new_tokenizer()
    model = denoiser.load_denoiser(begin) if begin else denoiser.Denoiser(tokenizer)
    folder = args.work / "milestones"
    folder.mkdir(exist_ok=True)
    milestones: Callable[[int, dict[str, Tensor]], None] = partial(save_average, folder)
    if labelers and not args.only_weights:
        milestones = Milestones(
            folder,
            copy.deepcopy(model).to(device),
            vae,
            data,
            latents,
            ClassLabeler(cast(ClassNetwork, labelers["judge"]), device),
            map_labeler("foreground", cast(MapNetwork, labelers["maps"]), device),
        )
    denoiser.train_denoiser(
        data, vae, tokenizer, args.work, device, recipe, model, milestone=milestones,
        time_limit=60 * args.denoiser_minutes,
    )  # fmt: skip
    return model


def _arguments() -> argparse.Namespace:
    """Parse the command line."""
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
    parser.add_argument(
        "--new-denoiser",
        action="store_true",
        help="with --from: train a new UNet and text encoder instead of those of the folder",
    )
    parser.add_argument(
        "--only-weights",
        action="store_true",
        help="do not measure the denoiser at the milestones of its training, only keep its weights",
    )
    parser.add_argument("--contact-sheet", type=Path, default=Path("docs/contact-sheet.png"))
    parser.add_argument("--scenes", type=int, default=38_000)
    parser.add_argument(
        "--autoencoder-samples", type=int, default=autoencoder.AUTOENCODER_RECIPE.samples
    )
    parser.add_argument(
        "--denoiser-samples",
        type=int,
        help=f"default {denoiser.DENOISER_RECIPE.samples}, "
        f"or {denoiser.DENOISER_CONTINUED.samples} more with --from",
    )
    parser.add_argument(
        "--denoiser-minutes",
        type=float,
        default=math.inf,
        help="end the denoiser's training after so long, with its learning rate at zero",
    )
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    return parser.parse_args()


if __name__ == "__main__":
    _lower_priority()
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
