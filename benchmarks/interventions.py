"""Cost of edits: plain generation, the exact edit, and the paper's gradient descent, on one batch.

    python benchmarks/interventions.py RUN [samples]

RUN is a finished run of the tabletop study.  Validation samples, so that nothing here looks at the
test part.  Prints a table: seconds over plain generation's, and Dice with the target.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np

from ldmprobe_core.interventions.changes import make_change
from ldmprobe_core.interventions.directions import direction_of
from ldmprobe_core.interventions.editor import Editor, sample_edited
from ldmprobe_core.interventions.measures.scores import score_edited_maps
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.interventions.targets import Target, target_maps
from ldmprobe_core.pipeline.labels import as_label, label_set
from ldmprobe_core.pipeline.model_cache import use_models
from ldmprobe_core.storage.run import Run

ROUNDS = 5


def main(url: str, count: int) -> None:
    """Print seconds of generation and Dice with the target, for each way of editing."""
    run = Run(url)
    identity = run.location.read_text("identity")
    labels = label_set(run)
    with use_models(run) as (sampler, labelers):
        base = Intervention(samples=count, part="validation", targets=(Target(dx=0.2),))
        prop = base.edited_property
        index = plan_intervention(run, base).samples
        samples = [run.samples[i] for i in index]
        own = labels.maps[prop.name][index]
        aim = target_maps(own, base.targets)[0]
        editors: dict[str, Editor | None] = {"plain": None}
        for method in ("exact", "adam"):
            spec = base.model_copy(update={"method": method})
            plan = plan_intervention(run, spec)

            def direction(step: int, layer: str, spec: Intervention = spec) -> Any:
                return direction_of(run.url, identity, spec, step, layer)

            change = make_change(spec, plan.kind, direction, aim, spec.dose_axis[0])
            editors[method] = Editor(sampler, plan.sites[0].cells, change)
            for cell in plan.sites[0].cells:
                direction(*cell)  # computed once for all batches of an intervention
        sample_edited(sampler, samples, None)  # the first call allocates
        seconds: dict[str, list[float]] = {name: [] for name in editors}
        after: dict[str, float] = {}
        for round_ in range(ROUNDS):  # in turns, so that other work on the machine slows all alike
            for name, editor in editors.items():
                if name == "adam" and round_ > 0:
                    continue
                started = time.perf_counter()
                images = sample_edited(sampler, samples, editor)
                seconds[name].append(time.perf_counter() - started)
                maps = as_label(run.study, prop.name, labelers[prop.name](images))
                scores = score_edited_maps(prop, maps, own, aim, labels.means[prop.name])
                after[name] = float(np.nanmean(scores[0]))
    plain = statistics.median(seconds["plain"])
    rows = {
        name: {"time_ratio": round(statistics.median(values) / plain, 3),
               "dice": round(after[name], 3)}
        for name, values in seconds.items()
    }  # fmt: skip
    for name, row in rows.items():
        print(f"{name:6} time x {row['time_ratio']:<7} Dice with target {row['dice']}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 16)
