"""Predictions of a linear probe."""

import numpy as np

from ldmprobe_core.probing.linear import LinearProbe


def test_linear_probe_predict():
    probe = LinearProbe(np.array([2.0, -1.0]), 0.5, 1.0)
    activations = np.array([[[[1, 2], [3, 4]]]], dtype=np.float16)
    assert probe.predict(activations).tolist() == [[[0.5, 2.5]]]
