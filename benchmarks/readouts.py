"""Readouts without training on the embedded model: correspondence, and attention to the noun.

    python -m benchmarks.readouts [--images 32] [--steps 15]

Both parts choose a layer and a step on the first half of the images, and print the score of this
choice on the second half, with a bootstrap interval over images, beside what needs no choice.

**Correspondence.** Each pair of rendered images shows one object from two sides, at two places.
Both images are noised to each step's level and shown to the denoiser once, and a point of the first
is matched to the most similar token of the second.  The renderer knows the truth.  The score is
PCK: the fraction of points that are matched within `TOLERANCE` of the image's side.  Beside it:
noised latents, and the point's own position.  Objects that look the same from many sides are left
out, since their points cannot be told apart.

**Attention to the noun.** Images are generated from captions, and the cross-attention map of the
object's noun ranks tokens by foreground.  The score is AUROC against the labeler's masks of the
finished images.  Beside it: a ridge probe of self-attention, fitted to the first half, with layer
and step chosen by its fit there, and the mean mask of the first half.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

import ldmprobe as lp
from ldmprobe_core.analysis.report.text import number
from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.models import loading
from ldmprobe_core.models.architectures.registry import architecture_of
from ldmprobe_core.models.sampling import PipelineSampler
from ldmprobe_core.pipeline.activation_sinks import ActivationBuffer
from ldmprobe_core.probing.block_scores import block_means
from ldmprobe_core.probing.detection import auroc
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.tabletop.dataset import quantize
from ldmprobe_core.tabletop.render import correspondences, render
from ldmprobe_core.tabletop.scenes import Scene, sample_scene, scene_caption

TOLERANCE = 0.1
"""Largest distance of a correct match, as a fraction of the image's side."""

CATEGORIES = ("armchair", "mug", "car", "house")
"""Objects that look different from each side."""


def scene_pairs(count: int, seed: int = 0) -> list[tuple[Scene, Scene]]:
    """Draw pairs of scenes that differ in the object's yaw and place, and in the elevation."""
    rng = np.random.default_rng(seed)
    pairs: list[tuple[Scene, Scene]] = []
    while len(pairs) < count:
        seed += 1
        first = sample_scene(seed)
        if first.category in CATEGORIES:
            reach = min(0.36, 0.5 - 0.30 * first.size)
            across, above = rng.uniform(-reach, reach, 2)
            second = replace(
                first,
                yaw=first.yaw + float(rng.uniform(-45, 45)),
                offset=(float(across), float(above)),
                elevation=first.elevation + float(rng.uniform(-10, 10)),
            )
            pairs.append((first, second))
    return pairs


def noised_activations(images: np.ndarray, prompts: list[str], steps: int) -> dict[str, np.ndarray]:
    """Activations (image, step, y, x, channel) of source images at every noise level, by layer."""
    study = parse_study(
        {
            "name": "readouts",
            "prompts": {"items": sorted(set(prompts))},
            "sampling": {"steps": steps, "guidance": 1.0, "threads": torch.get_num_threads()},
            "capture": {"layers": ["self-attention", "blocks"]},
            "controls": {"permuted_weights": False, "clean_pixels": False},
        }
    )
    pipe = loading.load_pipeline(study, torch.device("cpu"))
    sampler = PipelineSampler(pipe, architecture_of(pipe), study)
    samples = [Sample(i, prompt, i, None, "train") for i, prompt in enumerate(prompts)]
    buffer = ActivationBuffer()
    sampler.sample(samples, buffer, images, step_images=False)
    return buffer.pop()["trained"].values


def chosen_score(scores: dict[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """Choose a layer and a step on the first half of the images.

    Args:
        scores: (image, step) by layer.

    Returns:
        layer with step, and the scores of the second half of the images.
    """
    half = len(next(iter(scores.values()))) // 2
    means = {layer: np.nanmean(values[:half], axis=0) for layer, values in scores.items()}
    layer = max(means, key=lambda name: means[name].max())
    step = int(means[layer].argmax())
    return f"{layer}, step {step + 1}", scores[layer][half:, step]


def correspondence_scores(count: int, steps: int) -> dict[str, np.ndarray]:
    """PCK of each pair of the second half, by readout."""
    pairs = scene_pairs(count)
    scenes = [scene for pair in pairs for scene in pair]
    images = np.stack([quantize(render(scene))["rgb"] for scene in scenes])
    values = noised_activations(images, [scene_caption(scene) for scene in scenes], steps)
    scores = {layer: np.full((count, steps), np.nan) for layer in values}
    position = np.full(count, np.nan)
    for i, pair in enumerate(pairs):
        truth = correspondences(*pair)
        rows, columns = np.nonzero(np.isfinite(truth[..., 0]))
        points = (np.column_stack([rows, columns]) + 0.5) / truth.shape[0]
        position[i] = lp.readouts.pck(points, truth[rows, columns], TOLERANCE)
        for layer, of_layer in values.items():
            for step in range(steps):
                matches = lp.readouts.nearest_tokens(
                    of_layer[2 * i, step], of_layer[2 * i + 1, step], points
                )
                scores[layer][i, step] = lp.readouts.pck(matches, truth[rows, columns], TOLERANCE)
    latents = chosen_score({LATENTS: scores.pop(LATENTS)})
    return dict([chosen_score(scores), latents]) | {"own position": position[count // 2 :]}


def foreground_scores(count: int, steps: int) -> dict[str, np.ndarray]:
    """AUROC of each image of the second half, by readout."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MODEL_FOLDER)
    scenes = [sample_scene(seed) for seed in range(count)]
    prompts = [scene_caption(scene) for scene in scenes]
    captured = lp.capture(
        pipe, prompts, ("cross-attention@words", "self-attention"), steps, guidance=3.0
    )
    masks = lp.load_labeler("foreground", "tabletop")(captured.images) > 0.5
    half, words, probes, means = count // 2, {}, {}, np.zeros((0,))
    for layer, activations in captured.items():
        values = activations.values
        share = block_means(masks.astype(np.float32), values.shape[2:4])
        means = auroc(np.repeat(share[:half].mean(0)[None], count - half, 0), share[half:])
        if layer.endswith("@words"):
            maps = np.stack(
                [
                    lp.readouts.word_map(
                        image, lp.readouts.word_positions(pipe.tokenizer, prompt, scene.category)
                    )
                    for image, prompt, scene in zip(values, prompts, scenes, strict=True)
                ]
            )
        else:
            fitted = [
                lp.fit_probe(values[:half, step], masks[:half], penalties=[1e-2])
                for step in range(steps)
            ]
            maps = np.stack(
                [probe.predict(values[:, step]) for step, probe in enumerate(fitted)], axis=1
            )
        scores = np.stack([auroc(maps[:, step], share) for step in range(steps)], axis=1)
        (words if layer.endswith("@words") else probes)[layer] = scores
    return dict([chosen_score(words), chosen_score(probes)]) | {"mean mask": means}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=32, help="images, and pairs of images")
    parser.add_argument("--steps", type=int, default=15)
    given = parser.parse_args()
    for title, scores in (
        (f"PCK within {TOLERANCE}", correspondence_scores(given.images, given.steps)),
        ("AUROC of foreground", foreground_scores(given.images, given.steps)),
    ):
        print(f"\n{title}, images of the second half")
        for name, values in scores.items():
            defined = values[np.isfinite(values)]
            interval = Bootstrap(np.arange(len(defined)), 2000, 0.95, 0).interval(defined)
            print(f"  {name}: {number(interval)}")


if __name__ == "__main__":
    main()
