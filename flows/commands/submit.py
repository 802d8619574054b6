"""The command ``ldmprobe submit``, which starts a deployment of a flow with a study."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.checks.environment import check_environment
from flows.commands.results import console
from ldmprobe_core.errors import RunError, UserError
from tasks.display import activity

StudyArgument = Annotated[str, typer.Argument(help="a YAML file, or the name of a built-in study")]
DeploymentOption = Annotated[str, typer.Option(help="name of the deployment, as flow/name")]
StoreOption = Annotated[
    str | None, typer.Option(help="folder or s3://bucket/prefix; by default the deployment's")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override a key, such as sampling.steps=20")
]

_PLACE = frozenset({"runner", "address", "cluster", "gpus_per_worker"})
"""Keys of ``execution`` that say together where the workers are."""


def submit(
    study: StudyArgument = "tabletop",
    deployment: DeploymentOption = "study/process",
    store: StoreOption = None,
    set_: SetOption = None,
) -> None:
    """Start a deployment with a study; the deployment's execution settings stay in force."""
    from ldmprobe_core.study.loading import load_study

    with activity("reading the study and the model's configuration"):
        loaded = load_study(study, set_)
        # Imported after the study is read, so that its mistakes are reported without delay.
        from flows.checks.study_size import check_study_size
        from ldmprobe_core.pipeline.planning.plan import plan_study

        plan = plan_study(loaded)
    given = loaded.execution.model_dump(mode="json", exclude_unset=True)
    for sentence in plan.missing:
        console.print(f"note: on this machine: {sentence}", highlight=False, soft_wrap=True)
    check_study_size(plan.study)
    check_environment()
    with activity("loading Prefect"):
        from flows.server import prefect_server, ui_url
    content = plan.study.model_dump(mode="json", by_alias=True)
    with prefect_server(may_start=False) as api:
        run = _create_flow_run(deployment, content, given, store)
        console.print(
            f"Flow run {run.name}: {ui_url(api)}/runs/flow-run/{run.id}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def merged_execution(given: dict[str, Any], deployed: dict[str, Any]) -> dict[str, Any]:
    """Merge the execution settings of a study into those of a deployment.

    Args:
        given: keys of ``execution`` that the study sets itself; they win.
        deployed: section ``execution`` of the deployment's study.  If the study says where the
            workers are, none of the deployment's keys about that counts.
    """
    if _PLACE & given.keys():
        deployed = {key: value for key, value in deployed.items() if key not in _PLACE}
    return deployed | given


def _create_flow_run(
    deployment: str, study: dict[str, Any], given: dict[str, Any], store: str | None
) -> Any:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from ldmprobe_core.storage.filesystem import Location
    from ldmprobe_core.study.loading import parse_study

    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except (ObjectNotFound, ValueError):
            raise UserError(
                f"deployment: there is none of this name ({deployment}). Fix: list them with "
                "`prefect deployment ls`"
            ) from None
        except httpx.HTTPError as error:
            raise _refusal(error, deployment) from None
        deployed = (found.parameters.get("study") or {}).get("execution") or {}
        content = study | {"execution": merged_execution(given, deployed)}
        parsed = parse_study(content, "execution of study and deployment")
        parameters: dict[str, Any] = {"study": parsed.model_dump(mode="json", by_alias=True)}
        if store is not None:
            parameters["store"] = Location(store).url
        try:
            return client.create_flow_run_from_deployment(found.id, parameters=parameters)
        except httpx.HTTPError as error:
            raise _refusal(error, deployment) from None


def _refusal(error: Any, deployment: str) -> Exception:
    """Return the error to raise where the server carries out no request about a deployment."""
    from flows.checks.prefect_api import is_passing_status

    response = getattr(error, "response", None)  # that of an error status
    if response is not None and not is_passing_status(response.status_code):
        return UserError(
            f"deployment: it refuses the study ({deployment}: {response.text:.300}). "
            "Fix: use a deployment of the study or classify flow, of this release"
        )
    problem = (
        f"does not answer ({type(error).__name__})"
        if response is None
        else f"answers with HTTP status {response.status_code}"
    )
    return RunError(
        f"the Prefect server {problem}. Fix: look with `prefect flow-run ls` whether {deployment} "
        "has started; if it has not, repeat the command later"
    )
