"""Computation of one generation unit: the images and activations of one batch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.models.sampling import ActivationSink
from ldmprobe_core.models.token_grid import pixel_tokens
from ldmprobe_core.pipeline.activation_sinks import ActivationWriter
from ldmprobe_core.pipeline.groups import (
    ACTIVATION_GROUPS,
    STEP_IMAGES,
    permuted_rows_in,
    step_images_in,
)
from ldmprobe_core.pipeline.model_cache import (
    get_sampler,
    let_other_threads_load,
    model_access,
)
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import GENERATE
from ldmprobe_core.study.layers import CLEAN_PIXELS
from ldmprobe_core.study.readers.image_folder import (
    map_path,
    read_image,
    read_map,
    source_digest,
)
from ldmprobe_core.study.samples import Sample
from ldmprobe_core.study.schema import Study


def generate_batch(url: str, batch: int) -> dict[str, Any]:
    """Generate the images of one batch, and write them and their activations to the run.

    Args:
        url: URL of the run.
        batch: index of the batch (from 0).

    Returns:
        numbers of ``samples`` generated, ``seconds`` taken and ``bytes`` written; all are 0 if the
        batch was complete already.

    Raises:
        UserError: a source image or map has changed or cannot be read, or the model's weights
            differ from those with which the run was created.
        NonFiniteError: a network computed NaN or infinite values.
    """
    run = Run(url)
    if run.progress.is_done(GENERATE, batch):
        return {"samples": 0, "seconds": 0.0, "bytes": 0}
    started = time.monotonic()
    study = run.study
    members = study.batches(run.n_stored)[batch]
    samples = run.samples[members.start : members.stop]
    source_images, maps = read_source_images(run, study, samples)
    region = slice(members.start, members.stop)
    (chosen, rows), permuted = step_images_in(run, members), permuted_rows_in(run, members)
    writer = ActivationWriter(run, region, permuted, study.sampling.steps)
    with writer as activations, model_access(study):
        sampler = get_sampler(study, run.attributes["model_fingerprint"])
        sink = _between_loads(activations)
        sampled = sampler.sample(samples, sink, source_images, chosen, permuted is not None)
        latent_size = sampler.architecture.latent
    run.write("images", {"image": sampled.image}, sample=region)
    written = sampled.image.nbytes
    if sampled.trajectory is not None and sampled.clean is not None:
        images = {"trajectory": sampled.trajectory, "clean": sampled.clean}
        run.write(STEP_IMAGES, images, sample=rows)
        written += sum(array.nbytes for array in images.values())
        if CLEAN_PIXELS in study.input_controls:
            written += _write_clean_pixels(run, sampled.clean, latent_size, rows)
    if sampled.prompt_embedding is not None:
        run.write("prompts", {"embedding": sampled.prompt_embedding}, sample=region)
    if maps:
        run.write("exact_maps", maps, sample=region)
    written += activations.bytes
    run.progress.mark_done(GENERATE, batch)
    return {"samples": len(members), "seconds": time.monotonic() - started, "bytes": written}


def _between_loads(sink: ActivationSink) -> ActivationSink:
    """Wrap a sink so that other threads can load their models between two of its calls."""

    def receive(network: str, step: int, transfer: HostTransfer) -> None:
        sink(network, step, transfer)
        let_other_threads_load()

    return receive


def _write_clean_pixels(run: Run, clean: np.ndarray, grid: tuple[int, int], rows: slice) -> int:
    """Average predicted clean images (sample, step, y, x, rgb) over blocks, and store the means.

    Args:
        run: run to write to.
        clean: uint8 images.
        grid: height and width of the latents, which number the blocks.
        rows: slice of the group's samples.

    Returns:
        number of bytes of the means.
    """
    dtype = getattr(torch, run.study.capture.dtype)
    flat = pixel_tokens(clean.reshape(-1, *clean.shape[2:]), grid, dtype).numpy()
    tokens = flat.reshape(*clean.shape[:2], *flat.shape[1:])
    # All counts of non-finite values are 0, because averages of 8-bit pixel values are finite.
    stored = {"activation": tokens, "nonfinite": np.zeros(clean.shape[:2], np.int32)}
    run.write(f"{ACTIVATION_GROUPS['trained']}/{CLEAN_PIXELS}", stored, sample=rows)
    return tokens.nbytes


def read_source_images(
    run: Run, study: Study, samples: list[Sample]
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """Read the source images of samples and their exact ground-truth maps from their files.

    Returns:
        source images (sample, y, x, rgb) uint8, and maps (sample, y, x) by property; None and an
        empty dict if the study generates its images.

    Raises:
        UserError: a file cannot be read, or has changed since the run was created.
    """
    if study.images is None:
        return None, {}
    folder, sizes = Path(study.images.folder), run.open("images").sizes
    for sample in samples:
        _require_unchanged(folder, sample, study.map_properties)
    size = sizes["y"], sizes["x"]
    names = [str(sample.source_image) for sample in samples]
    maps = {}
    for prop in run.exact_properties:
        paths = [(map_path(folder, name, prop), folder / name) for name in names]
        missing = study.images.missing.get(prop)
        maps[prop] = np.stack(
            [read_map(m, prop, size, p, missing) for m, p in paths if m is not None]
        )
    return np.stack([read_image(folder / name, size) for name in names]), maps


def _require_unchanged(folder: Path, sample: Sample, props: tuple[str, ...]) -> None:
    """Check that a sample's source image and its maps are the same as when the run was created.

    Raises:
        UserError: one of these files has changed or cannot be read.
    """
    name = str(sample.source_image)
    if sample.source_digest and source_digest(folder, name, props) != sample.source_digest:
        raise UserError(
            f"{folder / name}: this image or a map of it has changed since the run was created. "
            "Fix: restore the files and repeat the command, which resumes the run. Changed files "
            "need a new run"
        )
