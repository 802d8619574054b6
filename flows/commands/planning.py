"""Planning of a study for a command, with the checks that precede costly work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from flows.commands.carry_out import server_in_advance
from flows.commands.results import console
from ldmprobe_core.errors import UserError
from tasks.display import activity

if TYPE_CHECKING:
    from flows.server import LocalServer
    from ldmprobe_core.pipeline.planning.plan import StudyPlan
    from ldmprobe_core.storage.run import Run
    from ldmprobe_core.study.schema import Study


@contextmanager
def planned(
    study: str, store: str, overrides: list[str] | None
) -> Iterator[tuple[StudyPlan, Run, LocalServer | None]]:
    """Plan a study while a Prefect server starts, unless the study's run is finished.

    The server stops when the context ends.

    Args:
        study: a YAML file, or the name of a built-in study.
        store: folder or URL that holds runs.
        overrides: texts such as ``sampling.steps=20``.

    Yields:
        the plan, the study's run, which need not exist yet, and the server for `carry_out`.

    Raises:
        UserError: the study or the store is unusable, or files are missing.
    """
    reading = "reading the study and the model's configuration"
    with activity(reading):
        from ldmprobe_core.storage.filesystem import Location
        from ldmprobe_core.study.loading import load_study

        # A malformed store address raises an error here, before the study is planned.
        Location(store)
        loaded = load_study(study, overrides)
    with _server_for(loaded, store) as server:
        with activity(reading):
            plan, run = _plan_in(store, loaded)
        yield plan, run, server


@contextmanager
def _server_for(study: Study, store: str) -> Iterator[LocalServer | None]:
    """Start a Prefect server, except for a study whose run is finished."""
    from ldmprobe_core.storage.filesystem import Location

    # The name lacks the hash of prompts and images that are read from files: a server then starts
    # although the run may be finished.
    run = Location(f"{Location(store).url}/{study.run_name}")
    run.require_reachable()
    if run.has("summary.json"):
        yield None
        return
    with server_in_advance() as server:
        yield server


def _plan_in(store: str, study: Study) -> tuple[StudyPlan, Run]:
    """Plan a study, and return its plan and its run, which need not exist yet."""
    # Imported after the study is read, so that its mistakes are reported without delay.
    from flows.checks.study_size import check_study_size
    from ldmprobe_core.pipeline.prepare import run_in

    plan = plan_study_alone(study)
    if not plan.samples:
        # A plan has no samples if the prompts or source images cannot be read on this machine.  The
        # error that this call raises names the missing files.
        _require_complete(plan)
    check_study_size(plan.study)
    run = run_in(store, plan.study)
    run.location.require_reachable()
    return plan, run


def plan_study_alone(study: Study) -> StudyPlan:
    """Plan a study, check the file of its Dask cluster, and compare its memory with the machine."""
    from flows.checks.cluster_file import cluster_spec
    from flows.checks.worker_memory import memory_problems
    from ldmprobe_core.pipeline.planning.plan import plan_study

    if study.execution.cluster is not None:
        cluster_spec(study.execution)
    plan = plan_study(study)
    return replace(plan, missing=plan.missing + memory_problems(plan))


def with_trials(plan: StudyPlan) -> StudyPlan:
    """Return a plan with messages about labelers that fail on a trial image, as missing."""
    from ldmprobe_core.labelers.checks.trial import function_problems

    problems = function_problems(plan.study, plan.labelers, plan.size)
    return replace(plan, missing=plan.missing + problems)


def _require_complete(plan: StudyPlan) -> None:
    """Require that every package and file that the study needs is on this machine.

    Raises:
        UserError: something is missing; the message lists all of it.
    """
    if plan.missing:
        raise UserError("\nldmprobe: ".join(plan.missing))


def require_ready(plan: StudyPlan, run: Run) -> None:
    """Check that the study can run here, and print notes about its run.

    Raises:
        UserError: something is missing, or the store cannot hold the run.
    """
    from ldmprobe_core.pipeline.environments import change_notes
    from ldmprobe_core.pipeline.planning.store_checks import check_store
    from ldmprobe_core.pipeline.prepare import notes_on_new_run

    _require_complete(plan)
    check_store(plan, run)
    notes = change_notes(run) if run.exists else (*plan.notes, *notes_on_new_run(plan, run))
    if run.location.has("summary.json"):
        notes = ()  # Nothing is computed in a finished run.
    for sentence in notes:
        console.print(f"note: {sentence}", highlight=False, markup=False, soft_wrap=True)
