"""The protocol that every labeler keeps: size, range, units, independence of the batch."""

import numpy as np
import pytest
from labeler_weights import WRITERS

from ldmprobe_core.labelers.registry import check_labeler


@pytest.mark.slow
@pytest.mark.parametrize(("prop", "name"), WRITERS)
def test_labeler_size_range_and_independence_of_the_batch(loaded, source_images, prop, name):
    spec, labeler = loaded(prop, name)
    assert len(check_labeler(prop, spec)) == 16
    labels = labeler(source_images)
    assert labels.dtype == np.float32
    assert np.isfinite(labels).all()
    if prop == "class":
        assert labels.shape == (3, len(labeler.classes))
        assert len(set(labeler.classes)) == len(labeler.classes)
        np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-4)
    else:
        assert labels.shape == (3, 48, 64)
        assert labeler.classes == ()
    if prop == "foreground":
        assert 0 <= labels.min() <= labels.max() <= 1
    if prop == "shading":
        assert labels.min() >= 0
    assert labeler.units
    spread = np.ptp(labels) or 1.0
    for alone in (labeler(source_images[1:2])[0], labeler(source_images[[2, 1]])[1]):
        np.testing.assert_allclose(alone, labels[1], atol=1e-4 * spread)
