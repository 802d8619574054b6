"""Transfer of activations to the host as float16."""

import numpy as np
import torch
from model_helpers import LAYER, call_unet

from ldmprobe_core.models.host_transfer import HostTransfer


def test_host_transfer_counts_values_that_overflow_float16(unet, capture_layers):
    with torch.no_grad():
        for parameter in dict(unet.named_modules())[LAYER].to_out[0].parameters():
            parameter.mul_(1e9)
        with capture_layers([LAYER], 1) as capture:
            call_unet(unet, 2)
            values, bad = HostTransfer(capture.pop_activations(2)).result()[LAYER]
    assert bad.tolist() == (~np.isfinite(values)).reshape(2, -1).sum(1).tolist()
    assert bad.min() > 0
