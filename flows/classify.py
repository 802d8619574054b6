"""The classify flow, which measures from which step on a classifier names the object."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.checks.worker_memory import worker_memory_limit
from flows.run_lock import hold_study
from flows.scheduling.settings import RollingSeed, scheduled_date, summary_if_finished, wait_of
from flows.study import generate_and_label, with_repair
from flows.workers import workers_of
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.planning.rolling_seed import with_rolling_seed
from ldmprobe_core.study.schema import Study
from tasks.artifacts import publish_classes
from tasks.display import activity
from tasks.study import classify, prepare
from tasks.workload import CURVES, expect_work


@flow(name="classify", flow_run_name="classify {study.name}")
def classify_flow(
    study: Study,
    store: str = "runs",
    photographs: str | None = None,
    schedule: RollingSeed | None = None,
) -> dict[str, Any]:
    """Generate and label the images of a study, and return its class curves without probing.

    The class curves show how the classifier's answers change over the denoising steps.  If the
    study flow runs the same study later, it continues from these images and labels, and its report
    also shows the results for the photographs.

    Args:
        study: study to generate and label.
        store: folder or ``s3://bucket/prefix`` that contains runs.
        photographs: folder of real photographs to classify as well, or None.
        schedule: settings of scheduled runs, as in the study flow, without retention.
    """
    if study.labels.classes is None:
        raise UserError("labels.class is null, but classify needs it. Fix: give a class labeler.")
    day = scheduled_date(schedule)
    if day is not None:
        study = with_rolling_seed(study, day)
    with hold_study(study, store, wait_of(schedule, day)) as (plan, lease):
        with activity("creating the run, or reading its progress"):
            run = prepare(plan.study, store)
        finished = day is not None and summary_if_finished(run, study, day) is not None

        def curves_of_run() -> dict[str, Any]:
            with activity("class curves"):
                return classify(run, photographs)

        def work() -> dict[str, Any]:
            left = expect_work(run, ("generate", "label"), study.execution.workers, CURVES)
            generate_and_label(run, study.execution, left)
            lease.require_held()
            return curves_of_run()

        if finished:
            # The study flow has finished this run, and retention may have deleted its activations,
            # which would all be generated again.
            curves = curves_of_run()
        else:
            with workers_of(study.execution, worker_memory_limit(plan)):
                curves = with_repair(run, work)
    with activity("sending the results to Prefect"):
        publish_classes(curves, study.name, run.url)
    return curves
