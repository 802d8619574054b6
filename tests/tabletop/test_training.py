"""Training loop: schedule, and resuming after interruptions."""

import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ldmprobe_core.tabletop import training
from ldmprobe_core.tabletop.training import Recipe, Trainer


def test_trainer_resumed_equals_uninterrupted(tmp_path):
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(samples=60 * 5, batch=5, learning_rate=1e-2, warmup=3, average=0.9)

    def train(folder, stop=None):
        torch.manual_seed(1)
        folder.mkdir(exist_ok=True)
        model = nn.Linear(6, 1)
        trainer = Trainer(folder, "line", model, recipe, torch.device("cpu"))

        def loss(index, step):
            if step == stop:
                trainer.save_checkpoint()
                raise KeyboardInterrupt
            noise = torch.randn(len(index), 1)
            return (model(x[index]) - x[index].sum(1, keepdim=True) - 0.1 * noise).square().mean()

        trainer.fit(50, loss)
        return model

    uninterrupted = train(tmp_path / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", stop=23)
    resumed = train(tmp_path / "interrupted")
    assert torch.equal(uninterrupted.weight, resumed.weight)
    assert torch.equal(uninterrupted.bias, resumed.bias)


KILLED = """
import os, signal, sys, traceback
from pathlib import Path
import torch
from torch import nn
from ldmprobe_core.tabletop.training import Recipe, Trainer

def train(folder, stop):
    torch.manual_seed(1)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(samples=300, batch=5, learning_rate=1e-2, warmup=3, average=0.9)
    model = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 4, 3, padding=1), nn.Flatten())
    model.append(nn.Linear(4, 1)).to(memory_format=torch.channels_last)
    trainer = Trainer(folder, "line", model, recipe, torch.device("cpu"))
    trainer.CHECKPOINT_EVERY_S, trainer.PROGRESS_EVERY_S = 0.0, 1e9

    def loss(index, step):
        if step == stop:
            # Killed in the middle of writing a checkpoint.
            (folder / "line.tmp").write_bytes((folder / "line.safetensors").read_bytes()[:99])
            os.kill(os.getpid(), signal.SIGKILL)
        noise = torch.randn(len(index), 1)
        return (model(x[index]) - x[index].sum(1, keepdim=True) - 0.1 * noise).square().mean()

    def milestone(samples, average):
        torch.rand(samples)  # its use of the generator must not matter
        with (folder / "milestones").open("a") as file:
            print(samples, average["1.weight"].sum().item(), file=file)

    trainer.fit(50, loss, milestone, milestones=(0, 98, 200, 300, 400))
    values = torch.cat([value.flatten() for value in model.state_dict().values()])
    (folder / "weights").write_text(" ".join(map(str, values.tolist())))

for folder, stop in zip(sys.argv[1::2], sys.argv[2::2]):
    process = os.fork()
    if not process:
        try:
            train(Path(folder), int(stop))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""
"""Program that trains in one process for each folder and step; they share their imports."""


def test_trainer_killed_while_saving_equals_uninterrupted(tmp_path):
    folders = [tmp_path / name for name in ("uninterrupted", "killed", "killed", "killed")]
    words = []
    for folder, stop in zip(folders, (-1, 23, 41, -1), strict=True):
        folder.mkdir(exist_ok=True)
        words += [str(folder), str(stop)]
    command = [sys.executable, "-c", KILLED, *words]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    codes = [int(line) for line in process.stdout.splitlines()]
    assert codes == [0, -signal.SIGKILL, -signal.SIGKILL, 0], process.stderr
    uninterrupted, resumed = (np.loadtxt(folder / "weights") for folder in folders[:2])
    milestones, recorded = (np.loadtxt(folder / "milestones") for folder in folders[:2])
    assert milestones[:, 0].tolist() == [0, 100, 200, 300]
    # Up to the last bit of a sum, whose order depends on where the tensors lie in memory.
    np.testing.assert_allclose(resumed, uninterrupted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(recorded, milestones, rtol=1e-4, atol=1e-6)


def test_recipe_rate_rises_holds_and_falls():
    recipe = Recipe(samples=1000, batch=1, learning_rate=2.0, warmup=10, decay=0.4)
    assert recipe.rate(0) == pytest.approx(0.2)
    assert recipe.rate(300) == pytest.approx(2.0)
    assert recipe.rate(800) == pytest.approx(1.0)
    assert recipe.rate(999) < 0.01


def test_training_with_a_time_limit_ends_there_with_a_learning_rate_of_zero(tmp_path, monkeypatch):
    """On a clock that advances by a second a step, 40 seconds end a training of 1,000 steps."""
    seconds = [0.0]
    clock = SimpleNamespace(monotonic=lambda: seconds[0], process_time=lambda: 0.0)
    monkeypatch.setattr(training, "time", clock)
    recipe = Recipe(samples=2000, batch=2, learning_rate=2.0, warmup=1, decay=0.5, average=0.9)
    model, rates = nn.Linear(3, 1), []
    trainer = Trainer(tmp_path, "line", model, recipe, torch.device("cpu"), time_limit=40.0)

    def loss(index, step):
        seconds[0] += 1.0
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return model(torch.ones(len(index), 3)).square().mean()

    trainer.fit(10, loss)
    assert trainer.finished
    assert trainer.samples == 2 * 40
    assert rates[:21] == [2.0] * 21  # constant for half of the time
    fall = [1 + np.cos(np.pi * (second - 20) / 20) for second in range(20, 40)]
    np.testing.assert_allclose(rates[20:], fall, rtol=1e-12)
    record = json.loads((tmp_path / "line.json").read_text())
    assert (record["samples"], record["seconds"]) == (80, 40)
    resumed = Trainer(tmp_path, "line", nn.Linear(3, 1), recipe, torch.device("cpu"), 40.0)
    assert resumed.finished
