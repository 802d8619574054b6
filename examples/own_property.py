"""A property of your own: in which layer are the warm colours of the image, and from which step?"""

import sys

import ldmprobe as lp
from examples.first_study import SMALL


@lp.property("warm", kind="mask")
def warm(images):
    """Return the pixels (n, y, x) of images (n, y, x, rgb) that are redder than they are blue."""
    return images[..., 0] > images[..., 2] + 20.0


def main(store: str = "runs", overrides: dict = SMALL) -> lp.Run:
    """Run a study of the property, and print its best probe beside its controls."""
    study = lp.load_study("tabletop", {**overrides, "labels.warm": f"{__name__}:warm"})
    run = lp.run_study(study, store)
    result = run.summary.properties["warm"]
    print(f"best probe: {result.best.score} in {result.best.layer} at step {result.best.step}")
    for name, control in result.controls.by_name().items():
        print(f"{name}: {control.own_best.score}")
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
