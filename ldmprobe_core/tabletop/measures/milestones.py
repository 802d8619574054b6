"""Measuring a denoiser while it trains: class accuracy, likeness to renders, straight edges.

Every figure is of the averaged weights, on the same prompts and the same initial noise each time,
so that two milestones differ by the training alone.
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

GENERATED = 240
"""Images generated at each milestone, balanced over the categories."""
KEPT_EVERY = 200_000
"""Samples between two milestones whose averaged weights are kept."""

_MASK_ABOVE = 0.3


class Milestones:
    """What to do at a milestone of a denoiser's training; see `Trainer.fit`.

    Writes ``SAMPLES.json`` (the figures), ``SAMPLES.png`` (a contact sheet of 64 images), and every
    `KEPT_EVERY` samples ``SAMPLES.safetensors`` (the averaged weights, float16).

    Args:
        folder: where to write.
        model: of the architecture in training; its weights are overwritten.
        latents: (flip, scene, channel, y, x) of ``data``; the held-out scenes' are decoded, for
            generated images have been through the VAE's decoder as well.
        judge: the classifier that no study uses.
        foreground: tells where the object hides the edge of the floor.
        renders: how many held-out scenes to compare with; all where there are fewer.
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
        generated: int = GENERATED,
        renders: int = 2000,
    ) -> None:
        self.folder, self.vae = folder, vae
        self.model = model.arrange(next(model.parameters()).device)
        self.data, self.latents, self.judge, self.foreground = data, latents, judge, foreground
        self.generated, self.renders = generated, renders
        self._reference: tuple[np.ndarray, dict[str, float]] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, samples: int, average: dict[str, Tensor]) -> None:
        """Measure and keep the averaged weights, unless a run that was cut off has done so."""
        name = f"{samples:07d}"
        path = self.folder / f"{name}.json"
        if path.exists():
            return
        self.model.load_state_dict(average)
        self.model.eval()
        if samples % KEPT_EVERY < 100:  # a milestone falls on the first whole batch past it
            state = {key: value.half().contiguous() for key, value in average.items()}
            save_file(state, self.folder / f"{name}.safetensors")
        figures, images, captions = self.measure()
        contact_sheet(images[:64], captions[:64]).save(self.folder / f"{name}.png")
        path.write_text(json.dumps({"samples": samples} | figures, indent=2) + "\n")
        accuracy = figures["accuracy"]
        print(
            f"milestone {samples:,}: judge {accuracy['all']:.3f}, Frechet distance "
            f"{figures['frechet']:.3f} (renders {figures['frechet of renders']:.3f}), edge "
            f"{figures['edge']:.3f} px (renders {figures['edge of renders']:.3f})",
            flush=True,
        )

    def measure(self) -> tuple[dict[str, Any], np.ndarray, list[str]]:
        """The figures of the model as it is, with the generated images and their captions.

        Figures: ``accuracy``, the judge's, over all and by category; ``frechet``, distance of the
        judge's features between generated images and held-out renders through the VAE, both with
        a wall; ``frechet of renders``, the same between as many renders and the others; ``edge``,
        mean residual in pixels of the line along the floor's edge (`line_residual`), with its
        median, and the share of images in which it could be measured; the same of renders.
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
        """Where the model is."""
        return next(self.model.parameters()).device

    def reference(self, count: int) -> tuple[np.ndarray, dict[str, float]]:
        """Features (n, d) of held-out renders through the VAE, and the renders' own figures.

        Args:
            count: how many of the renders play the generated images, against the others.
        """
        if self._reference is None:
            captions = self.data.captions()
            index = [i for i in self.data.held_out if _has_wall(captions[i])][: self.renders]
            latents = torch.from_numpy(self.latents[0, index].astype(np.float32))
            images = decode(self.vae, latents, self.device)
            features = self.judge.features(images)
            count = min(count, len(features) // 2)
            some = slice(None, 2 * self.generated)
            self._reference = (
                features,
                {
                    "frechet of renders": frechet_distance(features[:count], features[count:]),
                    **self._edge(images[some], [captions[i] for i in index[some]], " of renders"),
                },
            )
        return self._reference

    def _edge(self, images: np.ndarray, captions: list[str], of: str) -> dict[str, float]:
        residuals, tried = edge_residuals(images, self.foreground(images) > _MASK_ABOVE, captions)
        return {
            f"edge{of}": float(residuals.mean()),
            f"edge median{of}": float(np.median(residuals)),
            f"edge measured{of}": len(residuals) / max(1, tried),
        }


def _has_wall(caption: str) -> bool:
    return caption.endswith(" wall")
