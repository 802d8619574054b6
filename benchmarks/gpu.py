"""Cost of capture on a GPU, with a random UNet of Stable Diffusion 1.4 (512 x 512, float16).

    python benchmarks/gpu.py [images] [batch]

Where there is no CUDA it says so and measures nothing.  Ways: the denoiser alone for 15 steps with
guidance; with all 16 self-attention layers copied to page-locked memory while the next step
computes; with these copies and, after each batch, the sums that a study with statistics adds (from
host memory, in float64 on the card, at each position too); and with the Gram matrices alone, taken
without the way through host memory.  Bytes a second are set against what one large copy to
page-locked memory reaches on the same link.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from benchmarks.figures import Figure, report
from ldmprobe_core.assets import CONFIGS
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.capture import ActivationCapture
from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.probing.position import token_positions
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.probing.sums.device_sums import DeviceSums
from ldmprobe_core.study.batching import n_positions

FOLDER = CONFIGS / "stable-diffusion-v1-4"
STEPS, GUIDANCE = 15, 7.5


class Denoising:
    """Fifteen guided steps of a random denoiser, with an optional callback after each step."""

    def __init__(self, device: torch.device) -> None:
        config = UNet2DConditionModel.load_config(FOLDER / "unet")
        self.unet = UNet2DConditionModel.from_config(config).half().to(device).eval()
        self.device, self.architecture = device, detect_architecture(FOLDER)
        self.layers = {
            name: module for name, module in self.unet.named_modules() if name.endswith("attn1")
        }

    @torch.no_grad()
    def run(self, batch: int, after: Callable[[dict[str, torch.Tensor]], None] | None) -> None:
        """Denoise one batch, and call ``after`` with the captured layers of each step."""
        scheduler = DDIMScheduler(beta_schedule="scaled_linear")
        scheduler.set_timesteps(STEPS)
        size = {"device": self.device, "dtype": torch.float16}
        latents = torch.randn(batch, 4, 64, 64, **size)
        words = torch.randn(2 * batch, 77, 768, **size)
        capture = ActivationCapture(self.layers if after else {}, self.architecture, 2, self.unet)
        with capture:
            for t in scheduler.timesteps:
                free, bound = self.unet(torch.cat([latents] * 2), t, words).sample.chunk(2)
                if after:
                    after(capture.pop_activations(batch))
                guided = free + GUIDANCE * (bound - free)
                latents = scheduler.step(guided, t, latents).prev_sample


def seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """Time some work on the GPU: return the seconds of the fastest of several rounds."""
    times = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def start_transfer(transfers: list[HostTransfer], layers: dict[str, torch.Tensor]) -> None:
    """Start the copy of one step's layers to the host, and add it to a list."""
    transfers.append(HostTransfer(layers))


def add_to_sums(values: np.ndarray, device: torch.device) -> None:
    """Compute the sums of one cell for captured activations (sample, y, x, channel) of a batch."""
    x = values.reshape(-1, values.shape[-1])
    grid = values.shape[1], values.shape[2]
    labels = np.random.default_rng(0).normal(size=(len(x), 3))
    positions = np.resize(token_positions(grid), len(x))
    count = n_positions(grid)
    SufficientStatistics.from_tokens(x, labels, None, positions, count, DeviceSums(device))


def measure(images: int = 16, batch: int = 4) -> list[Figure]:
    """Measure denoising alone, with copies to the host, and with sums on the GPU."""
    device = torch.device("cuda")
    card = torch.cuda.get_device_name(device)
    denoising = Denoising(device)
    captured = 0

    def in_batches(make: Callable[[], Callable[[dict[str, torch.Tensor]], None] | None]) -> None:
        for _ in range(images // batch):
            denoising.run(batch, make())

    def to_host() -> Callable[[dict[str, torch.Tensor]], None]:
        before: list[HostTransfer] = []

        def after(layers: dict[str, torch.Tensor]) -> None:
            nonlocal captured
            captured = sum(values.nbytes for values in layers.values())
            if before:
                before.pop().result()  # waits for the copy of the step before
            before.append(HostTransfer(layers))

        return after

    def accumulated() -> None:
        for _ in range(images // batch):
            steps: list[HostTransfer] = []
            denoising.run(batch, partial(start_transfer, steps))
            for step in steps:
                for values, _ in step.result().values():
                    add_to_sums(values, device)

    def sums() -> Callable[[dict[str, torch.Tensor]], None]:
        grams: dict[str, torch.Tensor] = {}

        def after(layers: dict[str, torch.Tensor]) -> None:
            for name, values in layers.items():
                rows = values.flatten(0, 2).double()
                gram = rows.T @ rows
                grams[name] = grams[name] + gram if name in grams else gram

        return after

    torch.cuda.reset_peak_memory_stats()
    plain = seconds(lambda: in_batches(lambda: None))
    alone = torch.cuda.max_memory_allocated()
    copied = seconds(lambda: in_batches(to_host))
    added = seconds(accumulated)
    summed = seconds(lambda: in_batches(sums))
    most = torch.cuda.max_memory_allocated()

    large = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    link = (1 << 30) / seconds(lambda: host.copy_(large, non_blocking=True))
    moved = captured * STEPS * (images // batch)
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(FOLDER / "vae")).to(device).eval()
    latents = torch.randn(1, 4, 64, 64, device=device)
    with torch.no_grad():
        decoding = seconds(lambda: vae.decode(latents))
    note = f"{card}; {images} images, batch {batch}"
    return [
        Figure("gpu", "images a second, plain", images / plain, "1/s", note=note),
        Figure("gpu", "captured to page-locked memory / plain", copied / plain, "x", at_most=1.10),
        Figure("gpu", "captured and added to sums by the card / plain", added / plain, "x"),
        Figure("gpu", "Gram matrices without host memory / plain", summed / plain, "x"),
        Figure("gpu", "bytes captured a second / link's limit", moved / copied / link, "",
               note=f"link {link / 1e9:.1f} GB/s"),
        Figure("gpu", "decoding one image / one image's steps", decoding / (plain / images), "x"),
        Figure("gpu", "memory, plain", alone / 1e9, "GB"),
        Figure("gpu", "memory, at most", most / 1e9, "GB"),
    ]  # fmt: skip


if __name__ == "__main__":
    if torch.cuda.is_available():
        report(measure(*(int(word) for word in sys.argv[1:])))
    else:
        print("no CUDA device here: nothing measured")
