"""Whitening of the autoencoder."""

import numpy as np
import torch

from ldmprobe_core.tabletop import autoencoder


def test_whiten_decorrelates_latents_and_keeps_decoded_images():
    torch.manual_seed(0)
    model = autoencoder.new_autoencoder().eval()
    images = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    cpu = torch.device("cpu")
    before = autoencoder.encode(model, images, cpu)
    with torch.no_grad():
        decoded = model.decode(before).sample
        autoencoder.whiten(model, before)
        after = autoencoder.encode(model, images, cpu)
        torch.testing.assert_close(model.decode(after).sample, decoded, rtol=1e-3, atol=1e-3)
    rows = after.permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(rows.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(rows.T), torch.eye(4), atol=1e-3, rtol=0)
