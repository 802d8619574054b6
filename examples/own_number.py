"""A number of your own, one for each image: how large is the object?"""

import sys

import ldmprobe as lp
from examples.first_study import SMALL

foreground = lp.load_labeler("foreground", "tabletop")


@lp.property("size", kind="number")
def size(images):
    """Return the share of each image (n, y, x, rgb) that the object covers, (n,)."""
    return (foreground(images) > 0.5).mean((1, 2))


def main(store: str = "runs", overrides: dict = SMALL) -> lp.Run:
    """Run a study of the number, and print its best cell beside its controls."""
    labels = {"labels.size": f"{__name__}:size", "labels.depth": None, "labels.shading": None}
    run = lp.run_study(lp.load_study("tabletop", {**overrides, **labels}), store)
    result = run.summary.numbers["size"]
    print(f"rank correlation: {result.best.spearman} in {result.best.layer}, p = {result.p}")
    permuted = max((one for one in result.shuffled if one is not None), default=None)
    print(f"from the prompt: {result.prompt}; largest of permutations: {permuted}")
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
