"""The paper's protocol against a plain loop."""

import numpy as np
import pytest
import torch

from ldmprobe_core.probing.fitters.adam import fit_adam

N, GRID, SIZE, CHANNELS = 9, (3, 4), (6, 12), 5


@pytest.fixture
def data():
    """Activations (n, y, x, channel), a mask and a depth map at full size that depend on them."""
    rng = np.random.default_rng(3)
    activations = rng.normal(1, [1, 2, 0.5, 1, 3], (N, *GRID, CHANNELS))
    big = activations.repeat(2, 1).repeat(3, 2)
    signal = big @ np.array([1, -0.5, 2, 0, 0.2])
    depth = signal + rng.normal(0, 1, (N, *SIZE))
    return activations, depth > depth.mean(), depth


def test_fit_adam_repeats_the_papers_loop(data):
    """The paper's protocol written out plainly: full-size predictions, one epoch at a time."""
    activations, mask, depth = data
    for target, foreground in ((mask, True), (depth, False)):
        probe = fit_adam(activations, target, foreground, seed=4, epochs=3)
        generator = torch.Generator().manual_seed(4)
        bound = CHANNELS**-0.5
        outputs = 2 if foreground else 1
        layer = torch.nn.Linear(CHANNELS, outputs, bias=not foreground)
        with torch.no_grad():
            layer.weight.uniform_(-bound, bound, generator=generator)
            spare = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
            if not foreground:
                layer.bias.copy_(spare)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        x = torch.tensor(activations, dtype=torch.float32)
        criterion = torch.nn.CrossEntropyLoss() if foreground else torch.nn.HuberLoss(delta=1.0)
        for _ in range(3):
            order = torch.randperm(N, generator=generator)
            for a in range(0, N, 4):
                index = order[a : a + 4]
                big = layer(x[index]).repeat_interleave(2, 1).repeat_interleave(3, 2)
                if foreground:
                    loss = criterion(big.reshape(-1, 2), torch.tensor(target)[index].long().ravel())
                else:
                    wanted = torch.tensor(target, dtype=torch.float32)[index]
                    loss = criterion(big[..., 0], wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        weight = layer.weight.detach().numpy()
        expected = weight[1] - weight[0] if foreground else weight[0]
        np.testing.assert_allclose(probe.weight, expected, atol=1e-6)
