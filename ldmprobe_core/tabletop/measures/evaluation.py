"""The tabletop model's figures on held-out scenes and balanced prompts, and its contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw

from ldmprobe_core.labelers.base import Labeler
from ldmprobe_core.probing.baselines import position_prediction
from ldmprobe_core.probing.metrics import dice, spearman
from ldmprobe_core.study.prompt_sets import CATEGORIES, tabletop_prompts
from ldmprobe_core.tabletop.autoencoder import decode, encode
from ldmprobe_core.tabletop.dataset import Dataset
from ldmprobe_core.tabletop.scenes import sample_scene

GUIDANCE = 3.0
STEPS = 15


def scene_baselines(foreground: np.ndarray, depth: np.ndarray, shading: np.ndarray) -> dict:
    """How much of the maps position alone explains: mean maps of the first half on the second.

    Args:
        foreground: (n, y, x) bool; depth, shading: (n, y, x).
    """
    half = len(foreground) // 2
    rest = len(foreground) - half
    mask = position_prediction("foreground", foreground[:half].mean(0), foreground[:half], rest)
    found = {"dice": float(dice(mask, foreground[half:]).mean())}
    for name, maps in (("depth", depth), ("shading", shading)):
        mean = position_prediction(name, maps[:half].mean(0), maps[:half], rest)
        found[name] = float(np.nanmean(spearman(mean, maps[half:])))
    return found


def reconstruction_figures(
    images: np.ndarray, rebuilt: np.ndarray, foreground: np.ndarray, colors: list[str]
) -> dict[str, Any]:
    """PSNR in dB, and by named colour the mean colour error of the object.

    The colour error of an image is the largest difference over channels, in 0..1, between the mean
    colour of the object's pixels before and after.

    Args:
        images, rebuilt: (n, y, x, rgb) uint8; foreground: (n, y, x) bool.
        colors: the object's named colour in each image.
    """
    a, b = images / 255.0, rebuilt / 255.0
    psnr = -10 * np.log10(np.square(a - b).mean((1, 2, 3)))
    errors: dict[str, list[float]] = {}
    for before, after, mask, color in zip(a, b, foreground, colors, strict=True):
        if mask.sum() >= 20:
            gap = np.abs(before[mask].mean(0) - after[mask].mean(0)).max()
            errors.setdefault(color, []).append(float(gap))
    return {
        "psnr": float(psnr.mean()),
        "color_error": {color: float(np.mean(gaps)) for color, gaps in sorted(errors.items())},
    }


def labeler_figures(
    data: Dataset, index: np.ndarray, labelers: Mapping[str, Labeler], rebuilt: np.ndarray
) -> dict[str, float]:
    """Agreement of the labelers with the renderer's exact maps; class accuracy also on
    reconstructions.

    Args:
        index: held-out scenes.
        rebuilt: their reconstructions, (n, y, x, rgb) uint8.
    """
    images = data.rgb[index]
    truth = data.foreground[index] > 127
    category = data.category[index]
    found = {
        "dice": float(dice(labelers["foreground"](images) > 0.5, truth).mean()),
        "depth": float(np.nanmean(spearman(labelers["depth"](images), data.depth[index]))),
        "shading": float(np.nanmean(spearman(labelers["shading"](images), data.shading[index]))),
        "depth inside objects": correlation_inside(
            labelers["depth"](images), data.depth[index], truth
        ),
    }
    if "normal" in labelers:
        angles = degrees_off(labelers["normal"](images), data.normal[index])
        found["normal, degrees off"] = float(np.nanmean(angles))
        found["normal inside objects, degrees off"] = float(np.nanmean(angles[truth]))
    for name in ("class", "judge"):
        for kind, pictures in (("renders", images), ("reconstructions", rebuilt)):
            right = labelers[name](pictures).argmax(1) == category
            found[f"{name} on {kind}"] = float(right.mean())
    return found


@torch.no_grad()
def generate_balanced(
    pipeline: StableDiffusionPipeline, count: int, guidance: float = GUIDANCE, seed: int = 7
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Images (n, y, x, rgb) uint8 of ``count`` prompts balanced over the categories, with the
    (prompt, category) pairs; seeds differ from every study's by their large offset."""
    pairs = tabletop_prompts(count, seed)
    parts = []
    for a in range(0, count, 32):
        prompts = [prompt for prompt, _ in pairs[a : a + 32]]
        seeds = range(1_000_000 + a, 1_000_000 + a + len(prompts))
        latents = pipeline(
            prompt=prompts,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            output_type="latent",
        ).images
        parts.append(decode(pipeline.vae, latents, pipeline.device))
    return np.concatenate(parts), pairs


def class_accuracy(
    labeler: Labeler, images: np.ndarray, pairs: list[tuple[str, str]]
) -> dict[str, float]:
    """Share of images given their prompt's category, over all and by category."""
    named = [CATEGORIES[i] for i in labeler(images).argmax(1)]
    right = np.array([a == b for a, (_, b) in zip(named, pairs, strict=True)])
    kinds = np.array([category for _, category in pairs])
    found = {"all": float(right.mean())}
    return found | {c: float(right[kinds == c].mean()) for c in CATEGORIES}


def correlation_inside(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """Rank correlation of two maps over each object's own pixels, its mean over the objects.

    Args:
        predicted, truth: (n, y, x).
        inside: (n, y, x) bool; an object of less than 20 pixels is left out.
    """
    found = [
        spearman(a[mask][None, None], b[mask].astype(np.float64)[None, None])[0]
        for a, b, mask in zip(predicted, truth, inside, strict=True)
        if mask.sum() >= 20
    ]
    return float(np.nanmean(found))


def degrees_off(vectors: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Angle in degrees (n, y, x) between vectors (n, y, x, axis); NaN where one has no length."""
    a, b = vectors.astype(np.float64), truth.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(-1) / np.where(lengths > 0, lengths, np.nan)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the normal distributions fitted to two sets of features (n, d).

    As in Heusel et al. 2017 (arXiv 1706.08500), whose features are another network's: compare
    distances of the same features only.  Few samples make it larger than it is: the distance
    between two sets of the same sizes from one distribution is what chance alone gives.
    """
    gap = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    first, second = np.cov(a.T.astype(np.float64)), np.cov(b.T.astype(np.float64))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    between = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * between)


def contact_sheet(images: np.ndarray, captions: list[str], columns: int = 8) -> Image.Image:
    """Pictures in a grid at twice their size, each with its prompt below."""
    side, text = images.shape[1] * 2, 34
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 8), rows * (side + text + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = i % columns * (side + 8) + 4, i // columns * (side + text + 8) + 4
        sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (x, y))
        thing, _, place = caption.partition(" on ")
        draw.text((x, y + side + 2), thing, fill="black")
        draw.text((x, y + side + 16), "on " + place, fill="gray", font_size=9)
    return sheet


def reconstruct(vae: AutoencoderKL, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Images through the VAE and back, (n, y, x, rgb) uint8."""
    return decode(vae, encode(vae, images, device), device)


def colors_of(index: np.ndarray) -> list[str]:
    """The named colour of the object in scenes."""
    return [sample_scene(int(i)).color for i in index]
