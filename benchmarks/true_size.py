"""A study of 617 images at Stable Diffusion 1.4's size against plain generation of the same images.

    python -m benchmarks.true_size [folder] [rounds]

Networks have the published shapes and random weights: the pipeline, DPT-Large, TRACER-B7 and
VGG-16; retinex has no weights.  The parts of the work are timed one by one, a few times each in
turn, and multiplied by how often the study's own plan needs them (`ldmprobe check`): which samples
have step images, which the permuted twin, how many cells each resolution has.  Times are CPU
seconds of one thread, so that other work on the machine changes the ratios little.

Probes, summary and report are timed on small runs of this layout with random activations.  A
cell's seconds are a constant and a part that grows with images, from two sizes; those of the
summary and report grow with images x steps, which is an upper estimate.  The twin's time is that of
the denoiser itself on the conditional half, which is the same work.  Stable Diffusion XL at
1024 x 1024 is not run: its operations are counted on the meta device and divided by the rates
measured here.

It needs 4 GB of disk in the folder (a temporary one by default, which is deleted) and 10 GB of
memory.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

from benchmarks.figures import Figure, report
from ldmprobe_core.analysis.report.build import build_report
from ldmprobe_core.assets import CONFIGS
from ldmprobe_core.models.capture import ActivationCapture
from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.models.layers import named_points
from ldmprobe_core.pipeline import model_cache
from ldmprobe_core.pipeline.activation_sinks import ActivationWriter
from ldmprobe_core.pipeline.planning.plan import StudyPlan, plan_study
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.probe import probe_cell
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import GENERATE, LABEL
from ldmprobe_core.study.layers import INPUT_CONTROLS, LayerShape
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.schema import Study
from ldmprobe_core.tabletop.tokenizer import new_tokenizer

SHAPES = CONFIGS / "stable-diffusion-v1-4"
IMAGES, STEPS, BATCH = 617, 15, 4
PROBED = (48, 96)
"""Numbers of images of the two runs on which probes are timed."""

PROBED_STEPS = 3

XL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""Config of stabilityai/stable-diffusion-xl-base-1.0's denoiser, where it differs from defaults."""


@dataclass
class Costs:
    """CPU seconds of the parts of a study, each for one unit of it.

    Attributes:
        seconds: part to the seconds of each round.
        cells: name of a resolution or of an input control to seconds by number of images.
        closing: seconds of summary and report by number of images.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    cells: dict[str, dict[int, float]] = field(default_factory=dict)
    closing: dict[int, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str, units: int = 1) -> Iterator[None]:
        """Add the CPU seconds of a block, divided by its number of units, to a part."""
        started = time.process_time()
        yield
        self.seconds.setdefault(part, []).append((time.process_time() - started) / units)

    def of(self, part: str) -> float:
        """Return the median over rounds of a part's seconds."""
        return float(np.median(self.seconds[part]))


def write_model(folder: Path) -> None:
    """Write the pipeline with random weights in float16, and a tokenizer of 77 tokens."""
    torch.manual_seed(0)
    shutil.copytree(SHAPES, folder)
    for network, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        module = network.from_config(network.load_config(SHAPES / name))
        module.half().save_pretrained(folder / name)
    config = CLIPTextConfig.from_pretrained(SHAPES / "text_encoder")
    CLIPTextModel(config).half().save_pretrained(folder / "text_encoder")
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder / "tokenizer")


def write_labelers(folder: Path) -> dict[str, Any]:
    """Write labelers with random weights, and return the study's section ``labels``."""
    from carvekit.ml.arch.tracerb7.efficientnet import EfficientEncoderB7
    from carvekit.ml.arch.tracerb7.tracer import TracerDecoder

    torch.manual_seed(0)
    DPTForDepthEstimation(
        DPTConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
            backbone_out_indices=[5, 11, 17, 23], neck_hidden_sizes=[256, 512, 1024, 1024],
            is_hybrid=False, readout_type="project",
        )
    ).save_pretrained(folder / "dpt")  # fmt: skip
    DPTImageProcessor(size={"height": 384, "width": 384}).save_pretrained(folder / "dpt")
    networks = {
        "tracer": TracerDecoder(
            encoder=EfficientEncoderB7(),
            rfb_channel=[32, 64, 128],
            features_channels=[48, 80, 224, 640],
        ),
        "vgg16": vgg16(),
    }
    for name, network in networks.items():
        state = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    return {
        "foreground": {"name": "tracer", "weights": str(folder / "tracer.safetensors")},
        "depth": {"name": "midas", "weights": str(folder / "dpt")},
        "shading": "retinex",
        "class": {"name": "vgg16", "weights": str(folder / "vgg16.safetensors")},
    }


def study_of(model: Path, labels: dict[str, Any], images: int, **sections: Any) -> Study:
    """Return the study with defaults for all but the model, its sampler and the labelers."""
    content: dict[str, Any] = {
        "model": {"source": str(model)},
        "prompts": {"set": "objects", "samples": images},
        "sampling": {"scheduler": "lms", "steps": STEPS, "guidance": 7.5, "batch": BATCH},
        "labels": labels,
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    return parse_study(content)


def photographs(count: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random images with some noise, (count, 512, 512, rgb) uint8."""
    small = rng.uniform(0, 255, (count, 16, 16, 3)).repeat(32, 1).repeat(32, 2)
    images = gaussian_filter(small, (0, 12, 12, 0)) + rng.normal(0, 4, small.shape)
    return images.clip(0, 255).astype(np.uint8)


@torch.no_grad()
def time_generation(run: Run, costs: Costs, rounds: int) -> None:
    """Time one unit of each part of generation, labeling and writing."""
    rng = np.random.default_rng(0)
    torch.set_num_threads(1)
    latents = torch.randn(1, 4, 64, 64)
    timestep = torch.tensor(500)
    images = photographs(1, rng)
    with model_cache.use_models(run) as (sampler, labelers):
        points = named_points(sampler.denoiser)
        layers = {name: points[name] for name in sampler.layers}
        for number in range(rounds + 1):
            into = costs if number else Costs()  # The first round allocates.
            with into.timed("text encoder"):
                words = torch.cat(sampler.pipeline.encode_prompt("a cat", latents.device, 1, True))
            capture = ActivationCapture(layers, sampler.architecture, 2, sampler.denoiser)
            with capture, into.timed("denoising"):
                sampler.denoiser(torch.cat([latents] * 2), timestep, words)
            outputs = capture.calls
            with into.timed("capture"):
                activations = capture.pop_activations(1)
                HostTransfer(activations).result()
            batch = {name: torch.cat([values] * BATCH) for name, values in activations.items()}
            with into.timed("writing", BATCH), ActivationWriter(run, slice(0, BATCH)) as writer:
                writer("trained", 0, HostTransfer(batch))
            twin = ActivationCapture(layers, sampler.architecture, 1, sampler.denoiser)
            with twin, into.timed("permuted twin"):
                twin.run_network(sampler.denoiser, (latents, timestep, words[:1]), {}, outputs)
            with into.timed("decoding"):
                sampler.decode(latents)
            for prop, labeler in labelers.items():
                with into.timed(f"labeling: {run.study.labels.labeler(prop).name}"):
                    labeler(images)
            write_pictures(run, into, images[0])


def write_pictures(run: Run, costs: Costs, image: np.ndarray) -> None:
    """Time the writing of one step image and its labels, and of one finished image with its own."""
    index = run.read("step_images", "sample")
    rows, maps = slice(0, 1), run.study.labels.maps
    assert len(index), "the run has no step images"
    label = gaussian_filter(image[..., 0].astype(np.float32), 2) / 255
    with costs.timed("writing a step image"):
        steps = {"trajectory": image[None, None], "clean": image[None, None]}
        run.write("step_images", steps, sample=rows)
        for group in ("labels_trajectory", "labels_clean"):
            values = {prop: label[None, None].astype(np.float16) for prop in maps}
            run.write(group, values, sample=rows)
    with costs.timed("writing a finished image", BATCH):
        part = slice(0, BATCH)
        run.write("images", {"image": np.stack([image] * BATCH)}, sample=part)
        run.write("labels", {prop: np.stack([label] * BATCH) for prop in maps}, sample=part)


def fill(run: Run) -> None:
    """Write random labels and activations that carry them to a new run, and mark them complete."""
    rng = np.random.default_rng(1)
    count, study = run.n_stored, run.study
    small = gaussian_filter(rng.normal(size=(count, 3, 64, 64)), (0, 0, 4, 4)) * 8
    full = small.repeat(8, 2).repeat(8, 3).astype(np.float32)
    maps = {"foreground": 1 / (1 + np.exp(-3 * full[:, 0])), "depth": full[:, 1]}
    maps["shading"] = np.exp(full[:, 2] / 4)
    classes = run.open("labels").sizes["class"]
    score = np.full((count, classes), 1 / classes, np.float32)
    run.write("labels", {**maps, "class_score": score}, sample=slice(0, count))
    run.write("images", {"image": photographs(count, rng)}, sample=slice(0, count))
    features = run.open("prompts").sizes["feature"]
    run.write("prompts", {"embedding": rng.normal(size=(count, features)).astype(np.float32)})
    chosen = run.read("step_images", "sample")
    for row, sample in enumerate(chosen):
        picture = photographs(1, rng).repeat(PROBED_STEPS, 0)[None]
        at = slice(row, row + 1)
        run.write("step_images", {"trajectory": picture, "clean": picture}, sample=at)
        noisy = {p: m[[sample]] + rng.normal(0, 0.5, m[[sample]].shape) for p, m in maps.items()}
        steps = {p: np.stack([m] * PROBED_STEPS, 1).astype(np.float16) for p, m in noisy.items()}
        steps["class_score"] = np.stack([score[[sample]]] * PROBED_STEPS, 1)
        for group in ("labels_trajectory", "labels_clean"):
            run.write(group, steps, sample=at)
    for group in ("activations", "activations_permuted"):
        for layer in run.probe_inputs if group == "activations" else run.layers:
            fill_layer(run, f"{group}/{layer}", small, rng)
    for batch in range(len(study.batches(count))):
        run.progress.mark_done(GENERATE, batch)
        run.progress.mark_done(LABEL, batch)


def fill_layer(run: Run, group: str, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Write activations of a layer: the labels at its resolution in some directions, and noise."""
    index, sizes = run.read(group, "sample"), run.open(group).sizes
    y, x, channels = (sizes[name] for name in ("y", "x", "channel"))
    block = 64 // y
    tokens = labels[index].reshape(len(index), 3, y, block, x, block).mean((3, 5))
    mixed = np.moveaxis(tokens, 1, -1) @ rng.normal(size=(3, channels))
    for start in range(0, len(index), BATCH):
        part = slice(start, min(start + BATCH, len(index)))
        shape = (part.stop - start, PROBED_STEPS, y, x, channels)
        values = mixed[part, None] + 2 * rng.standard_normal(shape, np.float32)
        bad = np.zeros(shape[:2], np.int32)
        stored = {"activation": values.astype(np.float16), "nonfinite": bad}
        run.write(group, stored, sample=part)


def time_probes(model: Path, labels: dict[str, Any], folder: Path, costs: Costs) -> None:
    """Time probes, summary and report on runs of two sizes, with one layer of each resolution."""
    layers = list(one_of_each(plan_study(study_of(model, labels, IMAGES)).shapes).values())
    for images in PROBED:
        share = images / IMAGES
        study = study_of(
            model, labels, images,
            sampling={"steps": PROBED_STEPS},
            capture={"layers": layers},
            controls={"permuted_weights": {"samples": round(160 * share)}},
            trajectory={"samples": round(64 * share), "training": round(32 * share)},
        )  # fmt: skip
        run = prepare_run(study, str(folder))
        model_cache.thread_local_models.loaded.clear()
        fill(run)
        for layer in run.probe_inputs:
            seconds = []
            for step in range(1, PROBED_STEPS + 1):
                started = time.process_time()
                probe_cell(run.url, step, layer)
                seconds.append(time.process_time() - started)
            name = resolution(layer, plan_study(study).shapes[layer])
            costs.cells.setdefault(name, {})[images] = float(np.median(seconds))
        started = time.process_time()
        build_report(run, {})
        costs.closing[images] = time.process_time() - started
        shutil.rmtree(run.url)


def resolution(layer: str, shape: LayerShape) -> str:
    """Name the kind of cell that a layer or an input control has."""
    return layer if layer in INPUT_CONTROLS else f"{shape.y} x {shape.x} x {shape.channels}"


def one_of_each(shapes: dict[str, LayerShape]) -> dict[str, str]:
    """Return one layer of each resolution."""
    found: dict[str, str] = {}
    for layer, shape in shapes.items():
        if layer not in INPUT_CONTROLS:
            found.setdefault(resolution(layer, shape), layer)
    return found


def composed(plan: StudyPlan, costs: Costs) -> tuple[float, dict[str, float]]:
    """Compose the study from its parts.

    Returns:
        CPU seconds of plain generation, and of each part of the study beyond it.
    """
    count, stored, steps = plan.count, plan.stored, len(plan.steps)
    plain = count * (
        costs.of("text encoder") + steps * costs.of("denoising") + costs.of("decoding")
    )
    # The last step's latents are the finished image, which plain generation decodes too.
    decoded = stored.step_images * (2 * stored.steps - 1)
    networks = count + stored.permuted
    parts = {
        "permuted twin": stored.permuted * steps * costs.of("permuted twin"),
        "decoding step images": decoded * costs.of("decoding"),
        "capture": networks * steps * costs.of("capture"),
        "writing activations": networks * steps * costs.of("writing"),
        "writing images and labels": count * costs.of("writing a finished image")
        + stored.step_images * stored.steps * costs.of("writing a step image"),
    }
    for name in costs.seconds:
        if name.startswith("labeling"):
            parts[name] = (count + decoded) * costs.of(name)
    parts["probes"] = steps * sum(
        extended(costs.cells[resolution(layer, shape)], count)
        for layer, shape in plan.shapes.items()
    )
    largest = max(costs.closing)
    scale = count / largest * steps / PROBED_STEPS
    parts["summary and report"] = costs.closing[largest] * scale
    return plain, parts


def extended(seconds: dict[int, float], images: int) -> float:
    """Extend seconds by number of images along a straight line; it never falls."""
    (small, few), (large, many) = sorted(seconds.items())
    slope = max(many - few, 0.0) / (large - small)
    return many + slope * (images - large)


def operations(work: Callable[[], Any]) -> float:
    """Count the floating-point operations of products and convolutions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())


def larger_model(plan: StudyPlan, costs: Costs) -> tuple[float, dict[str, float]]:
    """Compose the study for Stable Diffusion XL at 1024 x 1024 from counts and measured rates.

    Networks are counted on the meta device.  What grows with pixels or tokens is taken four times,
    probes sixteen times (twice the channels in four times as many layers of the largest size are an
    upper estimate), capture and writing by bytes.
    """
    with torch.device("meta"):
        config = UNet2DConditionModel.load_config(SHAPES / "unet")
        small = UNet2DConditionModel.from_config(config)
        large = UNet2DConditionModel(**XL_UNET)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(SHAPES / "vae"))
        one = torch.zeros(1)
        size = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        few, many = torch.zeros(1, 4, 64, 64), torch.zeros(1, 4, 128, 128)
        words, more_words = torch.zeros(1, 77, 768), torch.zeros(1, 77, 2048)
        denoising = operations(
            lambda: large(many, one, more_words, added_cond_kwargs=size)
        ) / operations(lambda: small(few, one, words))
        decoding = operations(lambda: vae.decode(many)) / operations(lambda: vae.decode(few))
        values = captured_values(large, many, more_words, size)
    captured = values / sum(
        shape.y * shape.x * shape.channels
        for name, shape in plan.shapes.items()
        if name not in INPUT_CONTROLS
    )
    factor = {"text encoder": 1, "denoising": denoising, "permuted twin": denoising}
    factor |= {"decoding": decoding, "capture": captured, "writing": captured}
    factor |= {name: 1 for name in costs.seconds if "midas" in name or "tracer" in name}
    factor |= {name: 1 for name in costs.seconds if "vgg16" in name}
    scaled = {
        part: [value * factor.get(part, 4) for value in values]
        for part, values in costs.seconds.items()
    }
    cells = {
        name: {images: 16 * value for images, value in seconds.items()}
        for name, seconds in costs.cells.items()
    }
    closing = {images: 4 * value for images, value in costs.closing.items()}
    return composed(plan, Costs(scaled, cells, closing))


def captured_values(
    network: torch.nn.Module, latents: torch.Tensor, words: torch.Tensor, size: dict[str, Any]
) -> int:
    """Count the values that the self-attention layers of a network give for one image."""
    counts: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: counts.append(output.numel()))
        for name, module in network.named_modules()
        if name.endswith("attn1")
    ]
    with torch.no_grad():
        network(latents, torch.zeros(1), words, added_cond_kwargs=size)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def figures_of(
    name: str, plain: float, parts: dict[str, float], goal: float | None
) -> list[Figure]:
    """Return the ratio of a study to plain generation, and the share of each part beyond it."""
    whole = (plain + sum(parts.values())) / plain
    note = f"plain generation {plain / IMAGES:.0f} CPU s an image"
    figures = [
        Figure("true_size", f"{name}: study / plain generation", whole, "x", goal, note=note)
    ]
    for part, seconds in parts.items():
        figures.append(
            Figure("true_size", f"{name}: {part} / plain generation", seconds / plain, "x")
        )
    return figures


VARIANTS: dict[str, dict[str, Any]] = {
    "six steps decoded": {"trajectory": {"steps": [1, 2, 4, 7, 11, 15]}},
    "six steps decoded, of 32 test samples": {
        "trajectory": {"steps": [1, 2, 4, 7, 11, 15], "samples": 32, "training": 16}
    },
}
"""Studies that decode less, with the keys in which they differ from the defaults."""


def measure(folder: str | None = None, rounds: int = 3) -> list[Figure]:
    costs = Costs()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        root = Path(place)
        write_model(root / "model")
        labels = write_labelers(root)
        model = root / "model"
        off = {"permuted_weights": False}
        one_step = {"steps": 1}
        small = study_of(model, labels, 2 * BATCH, sampling=one_step, controls=off)
        run = prepare_run(small, str(root / "runs"))
        time_generation(run, costs, rounds)
        shutil.rmtree(run.url)
        model_cache.thread_local_models.loaded.clear()
        print(json.dumps(costs.seconds), flush=True)
        time_probes(model, labels, root / "runs", costs)
        print(
            json.dumps({"seconds": costs.seconds, "cells": costs.cells, "closing": costs.closing})
        )
        plan = plan_study(study_of(model, labels, IMAGES))
        figures = figures_of("SD 1.4", *composed(plan, costs), goal=1.3)
        for name, sections in VARIANTS.items():
            other = plan_study(study_of(model, labels, IMAGES, **sections))
            figures.append(figures_of(f"SD 1.4, {name}", *composed(other, costs), goal=1.3)[0])
        return figures + figures_of("SDXL, counted", *larger_model(plan, costs), goal=None)


if __name__ == "__main__":
    report(measure(*sys.argv[1:2], *(int(word) for word in sys.argv[2:3])))
