"""One training loop for every tabletop network: schedule, moving average, checkpoints, progress.

Checkpoints are safetensors (no pickle), written beside the old one and then renamed, so a training
that is killed at any moment resumes from its last whole checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmprobe_core.tabletop.dataset import shuffled_batches


@dataclass(frozen=True)
class Recipe:
    """How long and how fast.

    Attributes:
        samples: training samples to draw in all.
        batch: samples a step.
        learning_rate: peak, reached after `warmup` steps, held, then brought to zero over the
            last `decay` share of the steps along a half cosine.
        average: decay of the exponential moving average of the weights; 0 keeps none.
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
        """Optimiser steps in all."""
        return self.samples // self.batch

    def rate(self, step: int) -> float:
        """Learning rate at a step (from 0)."""
        rise = min(1.0, (step + 1) / self.warmup)
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, left)))
        return self.learning_rate * rise * fall


class Trainer:
    """Trains ``model`` and leaves the averaged weights in it.

    Args:
        folder: where checkpoints and ``NAME.json`` (steps, seconds) are kept.
        name: of this training, for the files and the progress lines.
        model: float32 parameters; the forward pass may run in autocast.
    """

    CHECKPOINT_EVERY_S = 120.0

    def __init__(
        self, folder: Path, name: str, model: nn.Module, recipe: Recipe, device: torch.device
    ) -> None:
        self.path = folder / f"{name}.safetensors"
        self.record = folder / f"{name}.json"
        self.name, self.model, self.recipe, self.device = name, model.to(device), recipe, device
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=recipe.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        if self.path.exists():
            self._resume()

    @property
    def finished(self) -> bool:
        """All steps of the recipe are done."""
        return self.step >= self.recipe.steps

    def fit(self, scenes: int, loss: Callable[[np.ndarray, int], Tensor]) -> None:
        """Run to the recipe's end.

        Args:
            scenes: indices are drawn below this.
            loss: maps (indices of a batch, step) to a scalar.
        """
        recipe = self.recipe
        batches = shuffled_batches(scenes, recipe.batch, recipe.seed, self.step)
        self.model.train()
        saved = shown = begun = time.monotonic()
        first, smooth, before = self.step, 0.0, self.seconds
        while not self.finished:
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.rate(self.step)
            torch.manual_seed(recipe.seed * 1_000_003 + self.step)  # resuming repeats the noise
            value = loss(next(batches), self.step)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self._update_average()
            self.step += 1
            now = time.monotonic()
            self.seconds = before + now - begun
            now_value = value.item()
            smooth = now_value if smooth == 0 else 0.98 * smooth + 0.02 * now_value
            if now - shown > 20:
                shown = now
                speed = (self.step - first) * recipe.batch / (now - begun)
                print(
                    f"{self.name}: step {self.step}/{recipe.steps}, loss {smooth:.4f}, "
                    f"{speed:.0f} samples/s, "
                    f"{(recipe.steps - self.step) * recipe.batch / speed / 60:.1f} min left",
                    flush=True,
                )
            if now - saved > self.CHECKPOINT_EVERY_S:
                saved = now
                self._save()
        if self.step > first:
            self._save()
        self.model.load_state_dict(self.average)
        self.model.eval()

    def _update_average(self) -> None:
        # A young average follows the weights closely, else it remembers their random start.
        keep = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point() and self.recipe.average > 0:
                    self.average[key].lerp_(value, 1 - keep)
                else:
                    self.average[key].copy_(value)

    def _save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors[f"optimizer.{i}.exp_avg"] = state["exp_avg"]
            tensors[f"optimizer.{i}.exp_avg_sq"] = state["exp_avg_sq"]
        fresh = self.path.with_suffix(".tmp")
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            fresh,
            metadata={"step": str(self.step), "seconds": str(self.seconds)},
        )
        fresh.replace(self.path)
        record = {"step": self.step, "samples": self.step * self.recipe.batch}
        self.record.write_text(json.dumps(record | {"seconds": round(self.seconds)}))

    def _resume(self) -> None:
        with safe_open(self.path, framework="pt", device=str(self.device)) as file:
            stored = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (not a dict)
            self.step = int(file.metadata()["step"])
            self.seconds = float(file.metadata()["seconds"])

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average = part("average.")
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in part("optimizer.").items():
            i, name = key.split(".")
            state.setdefault(int(i), {"step": torch.tensor(float(self.step))})[name] = tensor
        fresh = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})


def to_unit(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (n, y, x, rgb) to float32 (n, rgb, y, x) in -1..1."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(tensor: Tensor) -> np.ndarray:
    """float (n, rgb, y, x) in -1..1 to uint8 (n, y, x, rgb)."""
    scaled = ((tensor.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
