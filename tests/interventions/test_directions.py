"""Edit directions and the statistics that they need."""

import numpy as np

from ldmprobe_core.interventions.directions import activation_statistics
from ldmprobe_core.probing.label_set import LabelSet


def test_activation_statistics_exclude_non_finite_samples():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(5, 3, 3, 4)).astype(np.float16)
    tokens = np.concatenate([tokens, tokens[:2]])
    tokens[2, 0, 0, 0] = np.inf  # excluded; the last sample is not a training sample
    labels = LabelSet({}, {}, train=np.arange(6), validation=np.array([6]), heldout=np.array([6]))
    expected = np.cov(tokens[[0, 1, 3, 4, 5]].reshape(-1, 4).astype(float), rowvar=False, bias=True)
    np.testing.assert_allclose(
        activation_statistics(tokens, labels).covariance, expected, rtol=1e-9
    )
