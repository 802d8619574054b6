"""The classify flow: when does a classifier name the object, step by step?"""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.study import generate_and_label, runner_of
from ldmprobe_core.errors import UserError
from ldmprobe_core.study import Execution, Study
from tasks.artifacts import publish_classes
from tasks.study import classify, prepare


@flow(
    name="classify",
    flow_run_name="classify {study.name}",
    task_runner=runner_of(Execution()),
)
def classify_flow(
    study: Study, store: str = "runs", photographs: str | None = None
) -> dict[str, Any]:
    """Generate and label a study, no probes, and return its class curves.

    The study flow of the same study goes on from here, and its report shows the photographs too.

    Args:
        photographs: a folder of real pictures to show to the same classifier.
    """
    if study.labels.classes is None:
        raise UserError("labels.class is null, and classify needs a class labeler: name one")
    run = prepare(study, store)
    generate_and_label(run)
    found = classify(run, photographs)
    publish_classes(found, study.name, run.url)
    return found
