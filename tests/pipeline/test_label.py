"""Labels of a stored batch."""

import numpy as np

from ldmprobe_core.pipeline import model_cache


def test_label_batch_stores_what_the_labelers_give_on_the_stored_images(finished_run):
    labelers = model_cache.get_labelers(finished_run.study)
    images = finished_run.read("images", "image")
    for prop in ("foreground", "depth", "shading"):
        np.testing.assert_allclose(
            finished_run.read("labels", prop), labelers[prop](images), rtol=1e-4, atol=1e-4
        )
    np.testing.assert_allclose(
        finished_run.read("labels", "class_score"), labelers["class"](images), rtol=1e-4, atol=1e-5
    )
    last = finished_run.read("labels_trajectory", "depth", step=-1)
    np.testing.assert_allclose(last, finished_run.read("labels", "depth"), rtol=2e-3, atol=2e-3)
