"""Loss and channel weights of the denoiser, against values by hand."""

import pytest
import torch

from ldmprobe_core.tabletop.denoiser import channel_effects, velocity_loss


def test_velocity_loss_by_hand():
    clean, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    for alpha, weight in ((0.5, 1.0), (0.9, 5 / 10), (0.99, 5 / 100)):
        a, s = alpha**0.5, (1 - alpha) ** 0.5
        target = a * 3 - s * 2
        loss = velocity_loss(torch.zeros(1, 1, 1, 1), clean, noise, torch.tensor([alpha]))
        assert float(loss) == pytest.approx(weight * target**2, rel=1e-4)


def test_velocity_loss_with_channel_weights_by_hand():
    clean = torch.tensor([1.0, 2.0])[None, :, None, None]
    zero = torch.zeros_like(clean)
    half = torch.tensor([0.5])
    weight = torch.tensor([1.5, 0.5])
    loss = velocity_loss(zero, clean, zero, half, channel_weight=weight)
    assert float(loss) == pytest.approx((1.5 * 0.5 + 0.5 * 2) / 2)
    late = torch.tensor([0.99])
    plain = velocity_loss(zero, clean, zero, late, snr_clip=float("inf"))
    assert float(plain) == pytest.approx(0.01 * 2.5, rel=1e-5)


def test_channel_effects_are_mean_squared_changes_of_pixels():
    class Decoder:
        def decode(self, latents):
            scaled = latents * torch.tensor([2.0, 1.0, 3.0, 0.0])[None, :, None, None]
            return type("Output", (), {"sample": scaled})

    effects = channel_effects(Decoder(), torch.zeros(4, 4, 16, 16))
    torch.testing.assert_close(effects, torch.tensor([4.0, 1.0, 9.0, 0.0]) / 3.5)
