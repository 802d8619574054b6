"""Set two runs side by side: the same prompts with another sampler."""

import sys

import ldmprobe as lp
from examples.first_study import SMALL


def main(store: str = "runs", overrides: dict = SMALL) -> list[dict[str, str]]:
    """Run both studies, print the paired differences, and one probe's weights."""
    studies = [
        lp.load_study("tabletop", {**overrides, "sampling.scheduler": scheduler})
        for scheduler in ("ddim", "euler")
    ]
    runs = [lp.run_study(study, store) for study in studies]
    rows = lp.compare(runs)
    for row in rows:
        print(", ".join(f"{key}: {value}" for key, value in row.items() if value))
    probe = runs[0].probe("depth", step=3, layer=runs[0].layers[0])
    print(f"depth probe: {probe.weight.size} weights, penalty {probe.penalty:g}")
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
