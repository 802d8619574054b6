"""Tests that the Kubernetes manifests match the schemas of their resources."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"


def manifests():
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if not path.name.endswith("-values.yaml"):
            for document in yaml.safe_load_all(path.read_text()):
                yield pytest.param(document, id=f"{path.stem}-{document['kind']}")


@pytest.fixture(scope="module")
def dask_schemas():
    folder = resources.files("dask_kubernetes") / "operator/deployment/helm"
    crd = folder / "dask-kubernetes-operator/crds/daskcluster.yaml"
    (version,) = yaml.safe_load(crd.read_text())["spec"]["versions"]
    return {"DaskCluster": version["schema"]["openAPIV3Schema"]}


def closed(schema):
    """Return a copy of a schema that refuses keys that it does not define."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    new = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        loose = schema.get("x-kubernetes-preserve-unknown-fields")
        new["additionalProperties"] = bool(loose)
    return new


@pytest.mark.parametrize("manifest", manifests())
def test_manifests_are_valid(manifest, dask_schemas):
    if manifest["kind"] in dask_schemas:
        assert manifest["apiVersion"] == "kubernetes.dask.org/v1"
        spec = dask_schemas[manifest["kind"]]["properties"]["spec"]
        jsonschema.validate(manifest["spec"], closed(spec))
        pod = manifest["spec"]["worker"]["spec"]
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "w"}, "spec": pod},
            "1.31", strict=True,
        )  # fmt: skip
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert "GPU=1" in container["args"]
        assert ["--nthreads", "1"] in [container["args"][i : i + 2] for i in range(10)]
    else:
        kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_manifests_with_a_mistake_are_refused(dask_schemas):
    """An unknown key or a wrong type makes the checks above fail."""
    cluster = yaml.safe_load((KUBERNETES / "dask-cluster.yaml").read_text())["spec"]
    spec = closed(dask_schemas["DaskCluster"]["properties"]["spec"])
    for wrong in ({**cluster, "workers": 3}, {**cluster, "worker": {"replicas": "many"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, spec)


def test_job_template_makes_a_valid_job():
    template = json.loads((KUBERNETES / "job-template.json").read_text())
    properties = template["variables"]["properties"]
    values = {name: p["default"] for name, p in properties.items() if "default" in p}
    values |= {"name": "a-run", "command": ["prefect", "flow-run", "execute"], "env": []}
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == properties.keys()

    def fill(part):
        if isinstance(part, dict):
            return {key: fill(value) for key, value in part.items()}
        if isinstance(part, list):
            return [fill(value) for value in part]
        whole = re.fullmatch(r"\{\{ (\w+) \}\}", part) if isinstance(part, str) else None
        if whole:
            return values[whole[1]]
        return part.replace("{{ name }}", values["name"]) if isinstance(part, str) else part

    job = fill(template["job_configuration"]["job_manifest"])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    container["resources"]["limits"]["nvidia.com/gpu"] = "1"  # the schema has text only
    kubernetes_validate.validate(job, "1.31", strict=True)


def test_helm_values_name_no_password():
    for path in KUBERNETES.glob("*-values.yaml"):
        text = json.dumps(yaml.safe_load(path.read_text())).lower()
        assert '"existingsecret": "prefect-auth"' in text, path
        assert "authstring" not in text
        assert "password" not in text
