"""A property and its labeler."""

import numpy as np

import ldmprobe as lp


@lp.property("bright", kind="mask")
def above_median(images):
    """Return the pixels that are brighter than half of their image."""
    grey = images.astype(np.float32).mean(-1)
    return grey > np.median(grey, axis=(1, 2), keepdims=True)
