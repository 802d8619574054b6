"""Measures of a denoiser in training: class accuracy, distance from renderings, straight edges.

All milestones use the averaged weights with the same prompts and the same initial noise, so that
differences between milestones come from the training alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from ldmprobe_core.labelers.tabletop import ClassLabeler, MapLabeler
from ldmprobe_core.tabletop.autoencoder import decode
from ldmprobe_core.tabletop.dataset import Dataset
from ldmprobe_core.tabletop.denoiser import Denoiser, new_pipeline
from ldmprobe_core.tabletop.measures.edges import edge_residuals
from ldmprobe_core.tabletop.measures.evaluation import (
    class_accuracy,
    contact_sheet,
    frechet_distance,
    generate_balanced,
)
from ldmprobe_core.tabletop.tokenizer import new_tokenizer

MILESTONE_IMAGES = 240
"""Number of images generated at each milestone, balanced over the categories."""

_MASK_ABOVE = 0.3


class Milestones:
    """Callback that measures a denoiser at the milestones of its training; see `Trainer.fit`.

    It writes ``SAMPLES.safetensors`` (the averaged weights, float16), ``SAMPLES.json`` (the
    figures) and ``SAMPLES.png`` (a contact sheet of 64 images).

    Args:
        folder: folder to write to.
        model: model of the architecture in training; its weights are overwritten.
        latents: latents of ``data``, (flip, scene, channel, y, x).  Held-out scenes are decoded
            from them, so that they pass through the VAE's decoder like generated images.
        judge: classifier that no study uses.
        foreground: labeler whose masks show where the object hides the edge of the floor.
        generated: number of images to generate.
        renders: largest number of held-out scenes to compare with.
    """

    def __init__(
        self,
        folder: Path,
        model: Denoiser,
        vae: AutoencoderKL,
        data: Dataset,
        latents: np.ndarray,
        judge: ClassLabeler,
        foreground: MapLabeler,
        generated: int = MILESTONE_IMAGES,
        renders: int = 2000,
    ) -> None:
        self.folder, self.vae = folder, vae
        self.model = model.arrange(next(model.parameters()).device)
        self.data, self.latents, self.judge, self.foreground = data, latents, judge, foreground
        self.generated, self.renders = generated, renders
        self._reference: tuple[np.ndarray, dict[str, float]] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, samples: int, average: dict[str, Tensor]) -> None:
        """Measure the averaged weights, unless this milestone was measured before a restart."""
        path = self.folder / f"{samples:08d}.json"
        if path.exists():
            return
        self.model.load_state_dict(average)
        self.model.eval()
        save_average(self.folder, samples, average)
        figures, images, captions = self.measure()
        contact_sheet(images[:64], captions[:64]).save(path.with_suffix(".png"))
        path.write_text(json.dumps({"samples": samples} | figures, indent=2) + "\n")
        accuracy = figures["accuracy"]
        print(
            f"milestone {samples:,}: judge {accuracy['all']:.3f}, Frechet distance "
            f"{figures['frechet']:.3f} (renders {figures['frechet of renders']:.3f}), edge "
            f"{figures['edge']:.3f} px (renders {figures['edge of renders']:.3f})",
            flush=True,
        )

    def measure(self) -> tuple[dict[str, Any], np.ndarray, list[str]]:
        """Measure the model with its present weights.

        Returns:
            the figures, the generated images (n, y, x, rgb) uint8, and their captions.  Figures:
            ``accuracy`` of the judge, over all and by category; ``frechet``, the distance of the
            judge's features between generated images and decoded held-out renderings, both with a
            wall; ``frechet of renders``, the distance between as many renderings and the others;
            ``edge``, the mean residual in pixels of the line along the floor's edge
            (`line_residual`), its median, and the fraction of images in which it was measured; and
            the same of renderings.
        """
        device = self.device
        pipeline = new_pipeline(self.vae, self.model, new_tokenizer()).to(device)
        pipeline.set_progress_bar_config(disable=True)
        images, pairs = generate_balanced(pipeline, self.generated)
        captions = [caption for caption, _ in pairs]
        walled = np.array([_has_wall(caption) for caption in captions])
        features = self.judge.features(images[walled])
        reference, figures = self.reference(len(features))
        return (
            {
                "accuracy": class_accuracy(self.judge, images, pairs),
                "frechet": frechet_distance(features, reference),
                **self._edge(images, captions, ""),
                **figures,
            },
            images,
            captions,
        )

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def reference(self, count: int) -> tuple[np.ndarray, dict[str, float]]:
        """Classifier features (n, d) of held-out renderings, and their measured quality.

        Args:
            count: number of renderings that are compared with the others, as generated images are.
        """
        if self._reference is None:
            captions = self.data.captions()
            index = [i for i in self.data.held_out if _has_wall(captions[i])][: self.renders]
            latents = torch.from_numpy(self.latents[0, index].astype(np.float32))
            images = decode(self.vae, latents, self.device)
            features = self.judge.features(images)
            count = min(count, len(features) // 2)
            measured = slice(None, 2 * self.generated)
            self._reference = (
                features,
                {
                    "frechet of renders": frechet_distance(features[:count], features[count:]),
                    **self._edge(
                        images[measured], [captions[i] for i in index[measured]], " of renders"
                    ),
                },
            )
        return self._reference

    def _edge(self, images: np.ndarray, captions: list[str], suffix: str) -> dict[str, float]:
        """Figures of the floor's edge in images, with a suffix to their names."""
        residuals, tried = edge_residuals(images, self.foreground(images) > _MASK_ABOVE, captions)
        return {
            f"edge{suffix}": float(residuals.mean()),
            f"edge median{suffix}": float(np.median(residuals)),
            f"edge measured{suffix}": len(residuals) / max(1, tried),
        }


def save_average(folder: Path, samples: int, average: dict[str, Tensor]) -> None:
    """Write the averaged weights of a milestone as float16."""
    state = {key: value.half().contiguous() for key, value in average.items()}
    save_file(state, folder / f"{samples:08d}.safetensors")


def _has_wall(caption: str) -> bool:
    """Return whether a caption's scene has a wall."""
    return caption.endswith(" wall")
