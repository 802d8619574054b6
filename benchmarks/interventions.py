"""What edits cost: plain generation, the exact edit, and the paper's descent, on one batch.

    python benchmarks/interventions.py RUN [samples]

RUN is a finished run of the tabletop study.  Validation samples, so that nothing here looks at the
test part.  Prints a table: seconds over plain generation's, and Dice with the target.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np

from ldmprobe_core.interventions.directions import directions_of
from ldmprobe_core.interventions.editor import Editor, make_edit, sample_edited
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.scores import score_maps_against_targets
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.targets import Target, target_maps
from ldmprobe_core.pipeline.labels import as_label, label_set
from ldmprobe_core.pipeline.model_cache import use_models
from ldmprobe_core.storage.run import Run

SETTINGS = {"layers": ("*",), "steps": 8, "confidence": 0.99999}
ROUNDS = 5


def main(url: str, count: int) -> None:
    run = Run(url)
    labels = label_set(run)
    with use_models(run) as (sampler, labelers):
        base = Intervention(samples=count, part="validation", targets=(Target(dx=0.2),), **SETTINGS)
        index = plan_intervention(run, base).samples
        samples = [run.samples[i] for i in index]
        own = labels.maps["foreground"][index]
        aim = target_maps(own, base.targets)[0]
        editors: dict[str, Editor | None] = {"plain": None}
        for method in ("exact", "adam"):
            what = base.model_copy(update={"method": method})
            plan = plan_intervention(run, what)
            editors[method] = Editor(
                sampler,
                directions_of(run, what, plan, labels),
                make_edit(what, plan.kind, aim, None),
            )
        sample_edited(sampler, samples, None)  # the first call allocates
        seconds: dict[str, list[float]] = {name: [] for name in editors}
        after: dict[str, float] = {}
        for round_ in range(ROUNDS):  # in turns, so that what else the machine does meets all
            for name, editor in editors.items():
                if name == "adam" and round_ > 0:
                    continue
                started = time.perf_counter()
                images = sample_edited(sampler, samples, editor)
                seconds[name].append(time.perf_counter() - started)
                maps = as_label(run.study, base.prop, labelers["foreground"](images))
                after[name] = float(
                    np.mean(score_maps_against_targets(base.defaults, maps, aim)[0])
                )
    plain = statistics.median(seconds["plain"])
    found = {
        name: {"time_ratio": round(statistics.median(values) / plain, 3),
               "dice": round(after[name], 3)}
        for name, values in seconds.items()
    }  # fmt: skip
    for name, row in found.items():
        print(f"{name:6} time x {row['time_ratio']:<7} Dice with target {row['dice']}")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 16)
