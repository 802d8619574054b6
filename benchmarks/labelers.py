"""Speed of labelers, compared with plain loops over their libraries on the same images.

    python benchmarks/labelers.py

Random weights of real architectures at reduced width: what is measured is what our way of calling
them adds.  Prints one line a labeler: images per second both ways, and their ratio of times.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ldmprobe_core.labelers.registry import load_labeler
from ldmprobe_core.study.probe_sections import LabelerSpec

CPU = torch.device("cpu")
IMAGES, ROUNDS = 24, 5


def depth_by_hand(folder: Path) -> Callable[[np.ndarray], None]:
    """Load a depth estimator, and return a plain loop that applies it to images."""
    model = DPTForDepthEstimation.from_pretrained(folder).eval()
    processor = DPTImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def label(images: np.ndarray) -> None:
        for a in range(0, len(images), 8):
            inputs = processor(list(images[a : a + 8]), return_tensors="pt")
            depth = model(**inputs).predicted_depth[:, None]
            torch.nn.functional.interpolate(depth, images.shape[1:3], mode="bicubic").numpy()

    return label


def classes_by_hand(folder: Path) -> Callable[[np.ndarray], None]:
    """Load an image classifier, and return a plain loop that applies it to images."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    processor = ViTImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def label(images: np.ndarray) -> None:
        for a in range(0, len(images), 16):
            inputs = processor(list(images[a : a + 16]), return_tensors="pt")
            model(**inputs).logits.softmax(1).numpy()

    return label


def write_depth(folder: Path) -> None:
    """Write a small depth estimator with random weights."""
    DPTForDepthEstimation(DPTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768,
        image_size=192, backbone_out_indices=[1, 2, 4, 5], neck_hidden_sizes=[32, 64, 128, 128],
        fusion_hidden_size=64, is_hybrid=False,
    )).save_pretrained(folder)  # fmt: skip
    DPTImageProcessor(size={"height": 192, "width": 192}).save_pretrained(folder)


def write_classes(folder: Path) -> None:
    """Write a small image classifier with random weights."""
    ViTForImageClassification(ViTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768,
    )).save_pretrained(folder)  # fmt: skip
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)


CASES = {
    ("depth", "midas"): (write_depth, depth_by_hand),
    ("class", "transformers"): (write_classes, classes_by_hand),
}


def seconds(label: Callable[[np.ndarray], object], images: np.ndarray) -> float:
    """Return the seconds that one call of a labeler takes."""
    started = time.perf_counter()
    label(images)
    return time.perf_counter() - started


def main() -> None:
    """Print the speed of each labeler and of its plain loop."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 256, 320, 3), np.uint8)
    found = {}
    for (prop, name), (write, by_hand) in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / name
            write(folder)
            ours = load_labeler(prop, LabelerSpec(name=name, weights=str(folder)), CPU)
            theirs = by_hand(folder)
            ours(images[:8]), theirs(images[:8])  # the first call allocates
            # The two alternate, so that other work on the machine slows both alike.
            pairs = [(seconds(ours, images), seconds(theirs, images)) for _ in range(ROUNDS)]
        mine, hand = (statistics.median(part) for part in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        found[f"{prop}/{name}"] = {"ratio": round(ratio, 3)}
        print(f"{prop}/{name}: {IMAGES / mine:.1f} images/s, by hand {IMAGES / hand:.1f}, "
              f"time ratio {ratio:.3f}")  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
