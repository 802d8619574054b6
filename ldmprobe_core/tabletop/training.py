"""Training loop of the tabletop networks: schedule, moving average, checkpoints, progress lines.

Checkpoints are safetensors (no pickle).  Each is written to a temporary file and then renamed, so a
training that is killed at any moment resumes from its last complete checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmprobe_core.tabletop.dataset import shuffled_batches

MILESTONES = (0, *(25_000 * 2**k for k in range(12)))
"""Numbers of samples at which a training is measured: 25,000 and its doublings.

A learning curve is about as steep from one doubling to the next.
"""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training.

    Attributes:
        samples: number of training samples to draw, with repetition.
        batch: samples a step.
        learning_rate: peak rate, reached after `warmup` steps, then constant, then reduced to zero
            along a half cosine over the last fraction `decay` of the steps.
        average: decay of the exponential moving average of the weights; 0 turns it off.
        seed: seed of batches and noise.
    """

    samples: int
    batch: int
    learning_rate: float
    warmup: int = 200
    decay: float = 0.4
    average: float = 0.999
    weight_decay: float = 1e-2
    seed: int = 0

    @property
    def steps(self) -> int:
        """Total number of optimiser steps."""
        return self.samples // self.batch

    def rate(self, step: int, time_used: float = 0.0) -> float:
        """Learning rate at a step (from 0).

        Args:
            time_used: fraction of the time limit that has passed, in 0..1; the rate falls as if
                the same fraction of the steps were done, if fewer are.
        """
        rise = min(1.0, (step + 1) / self.warmup)
        remaining = (self.steps - step) / max(1.0, self.decay * self.steps)
        remaining = min(remaining, (1 - time_used) / self.decay if self.decay else math.inf)
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, remaining)))
        return self.learning_rate * rise * fall


class Trainer:
    """Trainer of one network, which ends with the averaged weights.

    Args:
        folder: folder of the checkpoint and of ``NAME.json`` (steps, samples, seconds).
        name: name of the training, for files and progress lines.
        model: network with float32 parameters, the starting point unless there is a checkpoint;
            the forward pass may run in autocast.
        time_limit: wall time in seconds at which the training ends with its learning rate at zero,
            if the recipe would take longer; for a machine that is lent for a time.  Milestones are
            not counted.  The steps that are done then depend on the machine.

    Attributes:
        average: averaged weights, as a state dict.
        step: number of steps done.
        seconds, cpu_seconds: wall and CPU time of the training so far.
    """

    CHECKPOINT_EVERY_S = 120.0
    PROGRESS_EVERY_S = 30.0

    def __init__(
        self,
        folder: Path,
        name: str,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        time_limit: float = math.inf,
    ) -> None:
        self.path = folder / f"{name}.safetensors"
        self.record = folder / f"{name}.json"
        self.name, self.model, self.recipe, self.device = name, model.to(device), recipe, device
        self.time_limit = time_limit
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=recipe.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        if self.path.exists():
            self._resume()

    @property
    def finished(self) -> bool:
        """Flag that is True if all steps of the recipe are done, or the time limit is reached."""
        return self.step >= self.recipe.steps or self.seconds >= self.time_limit

    @property
    def samples(self) -> int:
        """Number of training samples drawn so far."""
        return self.step * self.recipe.batch

    def fit(
        self,
        scenes: int,
        loss: Callable[[np.ndarray, int], Tensor],
        milestone: Callable[[int, dict[str, Tensor]], None] | None = None,
        milestones: Sequence[int] = MILESTONES,
    ) -> None:
        """Train to the end of the recipe, from the checkpoint if there is one.

        Args:
            scenes: number of training scenes; batches are indices below it.
            loss: function from (indices of a batch, step) to a scalar loss.
            milestone: called with the number of samples and the averaged weights (a state dict)
                after the first step at which each of ``milestones`` is reached.  After a kill,
                the milestones since the last checkpoint are called again.
            milestones: numbers of samples, in ascending order; 0 is before the first step.
        """
        batches = shuffled_batches(scenes, self.recipe.batch, self.recipe.seed, self.step)
        if milestone and self.step == 0 and 0 in milestones:
            milestone(0, self.average)
        self.model.train()
        first_step, seconds_before = self.step, self.seconds
        saved = started = time.monotonic()
        cpu_before = self.cpu_seconds - time.process_time()
        progress = _Progress(self)
        while not self.finished:
            value = self._update(loss, next(batches))
            now = time.monotonic()
            self.seconds = seconds_before + now - started
            self.cpu_seconds = cpu_before + time.process_time()
            progress.add(value, now)
            reached = bisect_right(milestones, self.samples)
            if milestone and reached > bisect_right(milestones, self.samples - self.recipe.batch):
                milestone(self.samples, self.average)
                self.model.train()
                pause = (
                    time.monotonic() - now
                )  # the callback's time does not count as training time
                started, saved = started + pause, 0.0
                progress.pause(pause)
                cpu_before = self.cpu_seconds - time.process_time()
            if now - saved > self.CHECKPOINT_EVERY_S:
                saved = time.monotonic()
                self.save_checkpoint()
        if self.step > first_step:
            self.save_checkpoint()
        self.model.load_state_dict(self.average)
        self.model.eval()

    def _update(self, loss: Callable[[np.ndarray, int], Tensor], batch: np.ndarray) -> Tensor:
        """Take one optimiser step on a batch of scene indices; returns its loss.

        Nothing here waits for the device, so that the next step can be queued meanwhile.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step, self.seconds / self.time_limit)
        # The seed depends on the step alone, so that a resumed training draws the same noise.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        value = loss(batch, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return value.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Update the moving average of the weights after a step."""
        # Early on, the average follows the weights closely, so that it forgets their random start.
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for key, value in self.model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.average[key])
                values.append(value)
            else:
                self.average[key].copy_(value)
        # One call updates all weights: on a GPU, one call per tensor would take longer.
        torch._foreach_lerp_(averages, values, 1 - decay)

    def save_checkpoint(self) -> None:
        """Replace the checkpoint and the record by the current state."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors[f"optimizer.{i}.exp_avg"] = state["exp_avg"]
            tensors[f"optimizer.{i}.exp_avg_sq"] = state["exp_avg_sq"]
        temporary = self.path.with_suffix(".tmp")
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            temporary,
            metadata={
                "step": str(self.step),
                "seconds": str(self.seconds),
                "cpu_seconds": str(self.cpu_seconds),
            },
        )
        temporary.replace(self.path)
        record = {
            "step": self.step,
            "samples": self.samples,
            "seconds": round(self.seconds),
            "cpu_seconds": round(self.cpu_seconds),
            "machine": machine_name(self.device),
        }
        self.record.write_text(json.dumps(record))

    def _resume(self) -> None:
        """Restore weights, average, optimiser and counters from the checkpoint."""
        with safe_open(self.path, framework="pt", device=str(self.device)) as file:
            stored = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (not a dict)
            self.step = int(file.metadata()["step"])
            self.seconds = float(file.metadata()["seconds"])
            self.cpu_seconds = float(file.metadata().get("cpu_seconds", 0.0))

        def with_prefix(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}

        self.model.load_state_dict(with_prefix("model."))
        self.average = with_prefix("average.")
        state: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.model.parameters())
        for key, tensor in with_prefix("optimizer.").items():
            i, name = key.split(".")
            # The fused optimiser requires the parameter's memory format.
            moment = torch.empty_like(parameters[int(i)]).copy_(tensor).detach()
            state.setdefault(int(i), {"step": torch.tensor(float(self.step))})[name] = moment
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


class _Progress:
    """Printer of samples, loss, rate and remaining time, every `Trainer.PROGRESS_EVERY_S`."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._printed, self._printed_step = time.monotonic(), trainer.step
        self._loss: Tensor | None = None

    def add(self, loss: Tensor, now: float) -> None:
        """Record the loss of a step that ended at ``now``, and print a line if one is due."""
        trainer, recipe = self._trainer, self._trainer.recipe
        self._loss = loss.clone() if self._loss is None else self._loss.lerp_(loss, 0.02)
        elapsed = now - self._printed
        if elapsed <= trainer.PROGRESS_EVERY_S:
            return
        rate = (trainer.step - self._printed_step) * recipe.batch / elapsed
        remaining = (recipe.steps * recipe.batch - trainer.samples) / rate
        remaining = min(remaining, trainer.time_limit - trainer.seconds)
        print(
            f"{trainer.name}: {trainer.samples:,} of at most {recipe.samples:,} samples, "
            f"loss {self._loss.item():.4f}, {rate:.0f} samples/s, {remaining / 3600:.2f} h left",
            flush=True,
        )
        self._printed, self._printed_step = now, trainer.step

    def pause(self, seconds: float) -> None:
        """Exclude a pause of the training from the rate."""
        self._printed += seconds


def machine_name(device: torch.device) -> str:
    """Name of the GPU, or the number of CPU cores and their architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is fast on a device; it is 16 times slower without AVX-512."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def autocast(device: torch.device) -> torch.autocast:
    """Autocast context: mixed precision in bfloat16 if the device is fast in it, else float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_bfloat16(device))


def to_unit(images: np.ndarray, device: torch.device) -> Tensor:
    """Convert images uint8 (n, y, x, rgb) to float32 (n, rgb, y, x) in -1..1."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(tensor: Tensor) -> np.ndarray:
    """Convert images float (n, rgb, y, x) in -1..1 to uint8 (n, y, x, rgb)."""
    scaled = ((tensor.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
