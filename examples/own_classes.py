"""A class map of your own: where does the denoiser tell floor, wall and object apart?"""

import sys

import numpy as np

import ldmprobe as lp
from examples.first_study import SMALL

foreground = lp.load_labeler("foreground", "tabletop")
upward = lp.load_labeler("normals_y", "tabletop")


@lp.property("parts", kind="classes", classes=["wall", "floor", "thing"])
def parts(images):
    """Return the index of each pixel's class (n, y, x) in images (n, y, x, rgb)."""
    return np.where(foreground(images) > 0.5, 2, upward(images) > 0.5)


def main(store: str = "runs", overrides: dict = SMALL) -> lp.Run:
    """Run a study of the class map, and print its best cell beside position and latents."""
    others = dict.fromkeys(("labels.foreground", "labels.depth", "labels.shading"))
    labeler = {"labels.parts": f"{__name__}:parts"}
    run = lp.run_study(lp.load_study("tabletop", {**overrides, **others, **labeler}), store)
    result = run.summary.class_maps["parts"]
    print(f"mean IoU: {result.best.mean_iou} in {result.best.layer} at step {result.best.step}")
    print(f"position alone: {result.position}; latents: {result.inputs['latents'].mean_iou}")
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
