"""Tests of the deployments that infra/prefect.yaml describes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from prefect.exceptions import ParameterTypeError

from flows.classify import classify_flow
from flows.intervene import intervene_flow
from flows.study import study_flow
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.study.loading import load_study
from ldmprobe_core.study.schema import Study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deployments():
    return yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())["deployments"]


def test_deployments_cover_every_flow_and_kind_of_pool(deployments):
    flows = {"flows.study.study_flow": study_flow, "flows.classify.classify_flow": classify_flow,
             "flows.intervene.intervene_flow": intervene_flow}  # fmt: skip
    found = {(d["entrypoint"], d["name"]) for d in deployments}
    assert found == {(f, k) for f in flows for k in ("process", "docker", "kubernetes")}
    for deployment in deployments:
        parameters = inspect.signature(flows[deployment["entrypoint"]].fn).parameters
        assert deployment["parameters"].keys() <= parameters.keys()
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        assert deployment["enforce_parameter_schema"]
        assert "ldmprobe" in deployment["tags"]
        for schedule in deployment.get("schedules", []):
            assert schedule["active"] is False
    pools = {d["name"]: d["work_pool"]["name"] for d in deployments}
    assert len(set(pools.values())) == 3


def test_deployments_with_a_schedule_have_the_settings_of_scheduled_runs(deployments):
    hours = {"flows.study.study_flow": 3, "flows.classify.classify_flow": 2}
    for deployment in deployments:
        for schedule in deployment.get("schedules", []):
            hour = hours[deployment["entrypoint"]]
            assert (schedule["cron"], schedule["timezone"]) == (f"0 {hour} * * *", "UTC")
            # Prefect 3.9 drops the parameters of a schedule when it is switched on.
            assert "parameters" not in schedule
        settings = deployment["parameters"].get("schedule")
        if deployment["entrypoint"] == "flows.study.study_flow":
            assert settings == {"keep": 14, "keep_activations": 0}
            study_flow.validate_parameters({"study": {}, "schedule": settings})
        elif deployment["entrypoint"] == "flows.classify.classify_flow":
            assert settings == {}
            classify_flow.validate_parameters({"study": {}, "schedule": settings})
            with pytest.raises(ParameterTypeError, match="keep"):  # it has no retention
                classify_flow.validate_parameters({"study": {}, "schedule": {"keep": 14}})
        else:
            assert settings is None


def test_deployments_have_the_ready_study_as_parameters(deployments):
    for deployment in deployments:
        if "study" in deployment["parameters"]:
            study = Study.model_validate(deployment["parameters"]["study"])
            assert study.hash == load_study("tabletop").hash
            assert study.execution.runner == "dask"
        else:
            Intervention.model_validate(deployment["parameters"]["what"])
