"""Probe what a function of your own computes from images: here their luminance.

Run it with ``python -m examples.own_labels [STORE]``; a labeler is named as ``module:function``.
"""

import sys

import numpy as np

import ldmprobe as lp
from examples.first_study import SMALL

LABELS = {"shading": "examples.own_labels:luminance", "foreground": None, "depth": None}


def luminance(images: np.ndarray) -> np.ndarray:
    """Luminance (n, y, x) from 0 to 1 of images (n, y, x, rgb) uint8; it takes shading's place."""
    return images @ np.array([0.2126, 0.7152, 0.0722]) / 255


def main(store: str = "runs", overrides: dict = SMALL) -> lp.Run:
    """Run a study of luminance alone, and print its best cell."""
    labels = {f"labels.{name}": labeler for name, labeler in {**LABELS, "class": None}.items()}
    run = lp.run_study(lp.load_study("tabletop", {**overrides, **labels}), store)
    print(run.summary.properties["shading"].best)
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
