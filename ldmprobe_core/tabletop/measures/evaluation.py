"""Measures of the tabletop model on held-out scenes and balanced prompts, and its contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw

from ldmprobe_core.labelers.base import Labeler
from ldmprobe_core.probing.detection import position_cut
from ldmprobe_core.probing.metrics import dice, spearman
from ldmprobe_core.study.prompt_sets import CATEGORIES, tabletop_prompts
from ldmprobe_core.tabletop.autoencoder import decode, encode
from ldmprobe_core.tabletop.dataset import Dataset
from ldmprobe_core.tabletop.scenes import sample_scene

GUIDANCE = 3.0
SAMPLER_STEPS = 15


def scene_baselines(foreground: np.ndarray, depth: np.ndarray, shading: np.ndarray) -> dict:
    """Scores of the position baseline: mean maps of the first half, scored on the second half.

    Args:
        foreground: (n, y, x) bool.
        depth, shading: (n, y, x).
    """
    half = len(foreground) // 2
    mean = foreground[:half].mean(0)
    mask = np.broadcast_to(mean > position_cut(mean, foreground[:half]), foreground[half:].shape)
    scores = {"dice": float(dice(mask, foreground[half:]).mean())}
    for name, maps in (("depth", depth), ("shading", shading)):
        mean = np.broadcast_to(maps[:half].mean(0), maps[half:].shape)
        scores[name] = float(np.nanmean(spearman(mean, maps[half:])))
    return scores


def reconstruction_figures(
    images: np.ndarray, rebuilt: np.ndarray, foreground: np.ndarray, colors: list[str]
) -> dict[str, Any]:
    """Measure VAE reconstructions: PSNR in dB, and the object's mean colour error by colour name.

    The colour error of an image is the difference of the object's mean colour before and after, in
    0..1, in the channel where it is largest.

    Args:
        images, rebuilt: (n, y, x, rgb) uint8.
        foreground: (n, y, x) bool.
        colors: name of the object's colour in each image.
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
    """Scores of the labelers against ground-truth maps; class accuracy also on reconstructions.

    Args:
        index: indices of held-out scenes.
        labelers: labelers by name, including ``judge``.
        rebuilt: reconstructions of these scenes, (n, y, x, rgb) uint8.
    """
    images = data.rgb[index]
    truth = data.foreground[index] > 127
    category = data.category[index]
    scores = {
        "dice": float(dice(labelers["foreground"](images) > 0.5, truth).mean()),
        "depth": float(np.nanmean(spearman(labelers["depth"](images), data.depth[index]))),
        "shading": float(np.nanmean(spearman(labelers["shading"](images), data.shading[index]))),
        "depth inside objects": correlation_inside(
            labelers["depth"](images), data.depth[index], truth
        ),
    }
    if "normal" in labelers:
        angles = degrees_off(labelers["normal"](images), data.normal[index])
        scores["normal, degrees off"] = float(np.nanmean(angles))
        scores["normal inside objects, degrees off"] = float(np.nanmean(angles[truth]))
    for name in ("class", "judge"):
        for source, classified in (("renders", images), ("reconstructions", rebuilt)):
            correct = labelers[name](classified).argmax(1) == category
            scores[f"{name} on {source}"] = float(correct.mean())
    return scores


@torch.no_grad()
def generate_balanced(
    pipeline: StableDiffusionPipeline, count: int, guidance: float = GUIDANCE, seed: int = 7
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Generate images of prompts that are balanced over the categories.

    A large offset keeps the seeds apart from those of studies.

    Args:
        count: number of images.
        guidance: classifier-free guidance scale.
        seed: seed of the prompts.

    Returns:
        images (n, y, x, rgb) uint8 and their (prompt, category) pairs.
    """
    pairs = tabletop_prompts(count, seed)
    parts = []
    for a in range(0, count, 32):
        prompts = [prompt for prompt, _ in pairs[a : a + 32]]
        seeds = range(1_000_000 + a, 1_000_000 + a + len(prompts))
        latents = pipeline(
            prompt=prompts,
            num_inference_steps=SAMPLER_STEPS,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            output_type="latent",
        ).images
        parts.append(decode(pipeline.vae, latents, pipeline.device))
    return np.concatenate(parts), pairs


def class_accuracy(
    labeler: Labeler, images: np.ndarray, pairs: list[tuple[str, str]]
) -> dict[str, float]:
    """Fraction of images classified as their prompt's category, over all and by category."""
    predicted = [CATEGORIES[i] for i in labeler(images).argmax(1)]
    correct = np.array([a == b for a, (_, b) in zip(predicted, pairs, strict=True)])
    categories = np.array([category for _, category in pairs])
    accuracy = {"all": float(correct.mean())}
    return accuracy | {c: float(correct[categories == c].mean()) for c in CATEGORIES}


def correlation_inside(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """Mean over objects of the rank correlation of two maps over the object's pixels.

    Args:
        predicted, truth: (n, y, x).
        inside: (n, y, x) bool; objects of fewer than 20 pixels are skipped.
    """
    correlations = [
        spearman(a[mask][None, None], b[mask].astype(np.float64)[None, None])[0]
        for a, b, mask in zip(predicted, truth, inside, strict=True)
        if mask.sum() >= 20
    ]
    return float(np.nanmean(correlations))


def degrees_off(vectors: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Angle in degrees (n, y, x) between vectors (n, y, x, axis); NaN if either has length 0."""
    a, b = vectors.astype(np.float64), truth.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(-1) / np.where(lengths > 0, lengths, np.nan)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the normal distributions fitted to two sets of features (n, d).

    The formula is that of Heusel et al. 2017 (arXiv 1706.08500), who use features of another
    network; only distances in the same features are comparable.  Small samples bias it upwards:
    compare it with the distance of two sets of the same sizes from one distribution.
    """
    gap = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    first, second = np.cov(a.T.astype(np.float64)), np.cov(b.T.astype(np.float64))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    between = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * between)


def contact_sheet(images: np.ndarray, captions: list[str], columns: int = 8) -> Image.Image:
    """Grid of images at twice their size, each with its prompt below."""
    side, text = images.shape[1] * 2, 34
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 8), rows * (side + text + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = i % columns * (side + 8) + 4, i // columns * (side + text + 8) + 4
        sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (x, y))
        thing, _, surroundings = caption.partition(" on ")
        draw.text((x, y + side + 2), thing, fill="black")
        draw.text((x, y + side + 16), "on " + surroundings, fill="gray", font_size=9)
    return sheet


def reconstruct(vae: AutoencoderKL, images: np.ndarray, device: torch.device) -> np.ndarray:
    """VAE reconstructions of images, (n, y, x, rgb) uint8."""
    return decode(vae, encode(vae, images, device), device)


def colors_of(index: np.ndarray) -> list[str]:
    """Name of the object's colour in each scene of the given indices."""
    return [sample_scene(int(i)).color for i in index]
