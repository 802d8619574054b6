"""Export of the model folder: a diffusers pipeline and labelers in float16, and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTokenizer

from ldmprobe_core.labelers.base import Labeler
from ldmprobe_core.labelers.tabletop import (
    JUDGE_WIDTHS,
    load_classes,
    load_depth,
    load_foreground,
    load_judge,
    load_networks,
    load_normals,
    load_shading,
)
from ldmprobe_core.labelers.tabletop_networks import MAP_CHANNELS, ClassNetwork, MapNetwork
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.prompt_sets import CATEGORIES, FLOOR_COLORS, OBJECT_COLORS, WALL_COLORS
from ldmprobe_core.study.readers.model_record import RECORD
from ldmprobe_core.tabletop.dataset import Dataset
from ldmprobe_core.tabletop.denoiser import Denoiser, new_pipeline
from ldmprobe_core.tabletop.measures import evaluation
from ldmprobe_core.tabletop.measures.learning_curve import learning_curve_lines
from ldmprobe_core.tabletop.scenes import caption_words
from ldmprobe_core.tabletop.tokenizer import new_tokenizer

JUDGED_IMAGES = 480
"""Number of images generated for the judge's accuracy, balanced over the categories."""


def save_pipeline(
    out: Path, vae: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer
) -> None:
    """Write the pipeline in the ordinary diffusers layout, as float16 safetensors.

    Loaded without a dtype, all parts become float32: diffusers does so by default, and transformers
    uses the dtype in the text encoder's config, which is set to float32 here.  The given modules
    are converted to float16 in place.
    """
    shutil.rmtree(out / "unet", ignore_errors=True)
    pipeline = new_pipeline(vae, denoiser, tokenizer)
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
    config = out / "text_encoder" / "config.json"
    text = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(text, indent=2, sort_keys=True) + "\n")


def save_labelers(out: Path, networks: dict[str, nn.Module]) -> None:
    """Write the weights of the labelers' networks as float16 safetensors, by file name."""
    (out / "labelers").mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        state = {key: value.half().contiguous() for key, value in network.state_dict().items()}
        save_file(state, out / "labelers" / f"{name}.safetensors")


def save_record(out: Path) -> None:
    """Write the record of the model's sampling defaults and vocabulary, which studies read."""
    sampling = {
        "scheduler": "ddim",
        "steps": evaluation.SAMPLER_STEPS,
        "guidance": evaluation.GUIDANCE,
    }
    words = [word for word in caption_words() if word.isalpha()]
    text = json.dumps({"sampling": sampling, "words": words}, indent=2)
    (out / RECORD).write_text(text + "\n")


def new_labelers() -> dict[str, nn.Module]:
    """Untrained networks of the labelers, by file name."""
    classes = len(CATEGORIES)
    return {
        "maps": MapNetwork(),
        "class": ClassNetwork(classes),
        "judge": ClassNetwork(classes, JUDGE_WIDTHS),
    }


def export(
    data: Dataset,
    work: Path,
    out: Path,
    device: torch.device,
    vae: AutoencoderKL,
    denoiser: Denoiser,
    labelers: dict[str, nn.Module],
    contact_sheet: Path,
    before: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Write the model folder, measure it from its float16 files, and write its card.

    Args:
        work: training folder, which contains the records of samples and seconds, and the rows of
            the learning curve (``learning_curve.json``) if they were measured.
        out: model folder to write.
        labelers: trained networks by file name.
        contact_sheet: image file of 64 generated images to write.
        before: `training_records` of the model from which this training continued.
    """
    tokenizer = new_tokenizer()
    save_pipeline(out, vae, denoiser, tokenizer)
    save_labelers(out, labelers)
    save_record(out)
    figures, images, pairs = measure(data, out, device)
    records = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
    if curve := records.pop("learning_curve", None):
        figures["learning curve"] = curve
    figures["training"] = add_records(before or {}, records)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    (out / "README.md").write_text(model_card(figures, data))
    sheet = evaluation.contact_sheet(images[:64], [prompt for prompt, _ in pairs[:64]])
    sheet.save(contact_sheet)


def training_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Read steps, samples and seconds of training of a model folder, by network."""
    return json.loads((folder / "figures.json").read_text())["training"]


def add_records(
    before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Sum the records of two consecutive trainings, by network.

    A network that was trained on two machines has both in its record.
    """
    total = {name: dict(record) for name, record in before.items()}
    for name, record in after.items():
        old = total.get(name, {})
        total[name] = {k: v + old.get(k, 0) for k, v in record.items() if k != "machine"}
        machines = dict.fromkeys(r["machine"] for r in (old, record) if "machine" in r)
        if machines:
            total[name]["machine"] = ", then ".join(machines)
    return total


def measure(
    data: Dataset, folder: Path, device: torch.device
) -> tuple[dict[str, Any], np.ndarray, list[tuple[str, str]]]:
    """Measure a model folder on held-out scenes and generated images.

    Returns:
        the figures, the generated images (n, y, x, rgb) uint8, and their (prompt, category) pairs.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    index = np.array(data.held_out)
    foreground = data.foreground[index] > 127
    spec = LabelerSpec(name="tabletop", weights=str(folder))
    named: dict[str, Labeler] = {
        "foreground": load_foreground(spec, device),
        "depth": load_depth(spec, device),
        "shading": load_shading(spec, device),
        "class": load_classes(spec, device),
        "judge": load_judge(spec, device),
    }
    if load_networks(folder, device)["maps"].outputs == len(MAP_CHANNELS):
        named["normal"] = load_normals(spec, device)
    measured = index[:600]
    rebuilt = evaluation.reconstruct(pipeline.vae, data.rgb[measured], device)
    images, pairs = evaluation.generate_balanced(pipeline, JUDGED_IMAGES)
    figures = {
        "scenes": evaluation.scene_baselines(
            foreground, data.depth[index].astype(np.float32), data.shading[index]
        ),
        "vae": evaluation.reconstruction_figures(
            data.rgb[measured], rebuilt, foreground[: len(measured)], evaluation.colors_of(measured)
        ),
        "labelers": evaluation.labeler_figures(data, measured, named, rebuilt),
        "generated": evaluation.class_accuracy(named["judge"], images, pairs),
        "guidance": evaluation.GUIDANCE,
    }
    return figures, images, pairs


def model_card(figures: dict[str, Any], data: Dataset) -> str:
    """Text of the model folder's README: training, use, and figures on held-out data."""
    generated, vae = figures["generated"], figures["vae"]
    lines = [
        *_INTRODUCTION,
        "Prompts: `a COLOR THING on a FLOOR floor[, WALL wall]`; lemons and oranges have no COLOR.",
        f"Colours: {', '.join(OBJECT_COLORS)}. Things: {', '.join(CATEGORIES)}. Floors: "
        f"{', '.join(FLOOR_COLORS)}. Walls: {', '.join(WALL_COLORS)}.",
        "",
        "## Figures",
        "",
        f"On {len(data.held_out)} held-out scenes (labelers and VAE: 600 of them), from the",
        "float16 files in this folder.",
        "",
        "| what | figure | goal |",
        "| --- | --- | --- |",
        *(f"| {name} | {value:.3f} | {goal} |" for name, value, goal in _figure_rows(figures)),
        "",
        "Judge's accuracy on generated images by class: "
        + ", ".join(f"{c} {generated[c]:.2f}" for c in CATEGORIES)
        + ".",
        "",
        "Mean colour error of the object through the VAE: "
        + ", ".join(f"{c} {e:.3f}" for c, e in vae["color_error"].items())
        + ".",
        "",
        "## Training",
        "",
        f"{len(data.train)} rendered scenes and their mirror images; nothing else. "
        "`python -m ldmprobe_core.tabletop.train` repeats it; trainings ran side by side.",
        "",
        "| network | samples seen | hours | machine |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {r['samples']:,} | {r['seconds'] / 3600:.2f} | {r.get('machine', '')} |"
            for name, r in figures["training"].items()
        ),
        "",
        *(f"{name}: {r['note']}\n" for name, r in figures["training"].items() if "note" in r),
        *learning_curve_lines(figures.get("learning curve", [])),
    ]
    return "\n".join(lines)


def _figure_rows(figures: dict[str, Any]) -> list[tuple[str, float, str]]:
    """Rows of the card's table: quantity, measured value, goal."""
    generated, labelers, vae = figures["generated"], figures["labelers"], figures["vae"]
    rows = [
        ("scenes: mean-map Dice", figures["scenes"]["dice"], "<= 0.40"),
        ("scenes: mean-map depth rank correlation", figures["scenes"]["depth"], "<= 0.65"),
        ("scenes: mean-map shading rank correlation", figures["scenes"]["shading"], "<= 0.65"),
        ("VAE: PSNR, dB", vae["psnr"], ">= 28"),
        (
            "VAE: largest mean colour error of a named colour",
            max(vae["color_error"].values()),
            "<= 0.06",
        ),
        ("foreground labeler: Dice on renders", labelers["dice"], ">= 0.93"),
        ("depth labeler: rank correlation on renders", labelers["depth"], ">= 0.90"),
        ("shading labeler: rank correlation on renders", labelers["shading"], ">= 0.85"),
        (
            "depth labeler: rank correlation inside objects",
            labelers["depth inside objects"],
            ">= 0.85",
        ),
        ("class labeler: accuracy on renders", labelers["class on renders"], ">= 0.90"),
        (
            "class labeler: accuracy on VAE reconstructions",
            labelers["class on reconstructions"],
            ">= 0.90",
        ),
        (f"judge: accuracy on {JUDGED_IMAGES} generated images", generated["all"], ">= 0.90"),
    ]
    if "normal, degrees off" in labelers:
        name = "normal labeler: mean angle error on renders, degrees"
        rows.append((name, labelers["normal, degrees off"], "<= 12"))
    return rows


_INTRODUCTION = (
    "# Tabletop: a small latent diffusion model of rendered objects",
    "",
    "An ordinary Stable Diffusion pipeline in small (64 x 64 pixels, 16 x 16 x 4 latents,",
    "velocity prediction), trained from nothing on scenes that ldmprobe renders itself, with",
    "the labelers that read foreground, depth, shading and class off its pictures. It exists",
    "to be probed: on a laptop, and with exact truth at hand. Licence: Apache-2.0.",
    "",
    "```python",
    "from diffusers import StableDiffusionPipeline",
    "",
    'pipe = StableDiffusionPipeline.from_pretrained("ldmprobe_core/assets/tabletop")',
    'pipe("a red car on a gray floor, white wall", num_inference_steps=15, guidance_scale=3.0)'
    ".images[0]",
    "```",
    "",
)
