"""Tests that the Kubernetes manifests match the schemas of their resources."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from unittest import mock

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
CLAIM = "ldmprobe-weights"


def manifests():
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if not path.name.endswith(("-values.yaml", "kustomization.yaml")):
            for document in yaml.safe_load_all(path.read_text()):
                yield pytest.param(document, id=f"{path.stem}-{document['kind']}")


@pytest.fixture(scope="module")
def dask_schemas():
    folder = resources.files("dask_kubernetes") / "operator/deployment/helm"
    schemas = {}
    for kind in ("DaskCluster", "DaskAutoscaler"):
        crd = folder / f"dask-kubernetes-operator/crds/{kind.lower()}.yaml"
        (version,) = yaml.safe_load(crd.read_text())["spec"]["versions"]
        schemas[kind] = version["schema"]["openAPIV3Schema"]
    return schemas


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


def check_pods_of_cluster(spec):
    """Both pods of a Dask cluster are valid, and the worker has a GPU, a thread and the weights."""
    for part in ("scheduler", "worker"):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": part},
             "spec": spec[part]["spec"]},
            "1.31", strict=True,
        )  # fmt: skip
    (scheduler,) = spec["scheduler"]["spec"]["containers"]
    assert scheduler["readinessProbe"]
    assert "nvidia.com/gpu" not in scheduler["resources"]["limits"]
    assert "tolerations" not in spec["scheduler"]["spec"]  # it stays off spot nodes and GPU nodes
    pod = spec["worker"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    # A node of 4 CPUs and 16 GiB, the smallest with a GPU, offers about 3.9 CPUs and 15 GiB.
    assert float(container["resources"]["requests"]["cpu"]) <= 3.5
    assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) <= 14
    assert "GPU=1" in container["args"]
    assert ["--nthreads", "1"] in [container["args"][i : i + 2] for i in range(10)]
    assert {m["mountPath"] for m in container["volumeMounts"]} == {"/weights", "/hub"}
    assert [v["persistentVolumeClaim"] for v in pod["volumes"]] == [{"claimName": CLAIM}]


def pods(part):
    """Return every pod specification inside a manifest: mappings that list containers."""
    if isinstance(part, list):
        return [pod for item in part for pod in pods(item)]
    if not isinstance(part, dict):
        return []
    inner = [pod for value in part.values() for pod in pods(value)]
    return [part, *inner] if "containers" in part else inner


def every_pod():
    template = json.loads((KUBERNETES / "job-template.json").read_text())["job_configuration"]
    yield from pods(template)
    for manifest in manifests():
        yield from pods(manifest.values[0])


def test_every_pod_is_accepted_under_the_restricted_pod_security_standard():
    found = list(every_pod())
    assert len(found) == 6  # the flow's, two clusters' schedulers and workers, that of the weights
    for pod in found:
        assert pod["serviceAccountName"] in ("ldmprobe", "{{ service_account_name }}")
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip


def test_images_have_one_tag_and_kustomization_renames_each():
    template = json.loads((KUBERNETES / "job-template.json").read_text())
    images = {pod["containers"][0]["image"] for pod in every_pod()} - {"{{ image }}"}
    images.add(template["variables"]["properties"]["image"]["default"])
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert images == {f"ldmprobe:{version}", f"ldmprobe-gpu:{version}"}
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    renamed = {image["name"]: image["newTag"] for image in kustomization["images"]}
    assert renamed == {"ldmprobe": version, "ldmprobe-gpu": version}
    for name in kustomization["resources"]:
        assert (KUBERNETES / name).exists()


def test_autoscaler_and_claim_belong_to_what_the_pods_name():
    named = {}
    for manifest in manifests():
        document = manifest.values[0]
        named.setdefault(document["kind"], []).append(document)
    (autoscaler,) = named["DaskAutoscaler"]
    assert autoscaler["spec"]["cluster"] in [c["metadata"]["name"] for c in named["DaskCluster"]]
    (claim,) = named["PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == CLAIM


@pytest.mark.parametrize("manifest", manifests())
def test_manifests_are_valid(manifest, dask_schemas):
    if manifest["kind"] in dask_schemas:
        assert manifest["apiVersion"] == "kubernetes.dask.org/v1"
        spec = dask_schemas[manifest["kind"]]["properties"]["spec"]
        jsonschema.validate(manifest["spec"], closed(spec))
        if manifest["kind"] == "DaskCluster":
            check_pods_of_cluster(manifest["spec"])
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
    # The flow's pod only coordinates: by default it needs no GPU, and stays off nodes with one.
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 0
    assert container["resources"]["requests"]["cpu"] == "1"
    container["resources"]["limits"]["nvidia.com/gpu"] = "0"  # the schema has text only
    pod = job["spec"]["template"]["spec"]
    assert pod["tolerations"] == []
    # Prefect's worker insists on these two at this place, where Kubernetes does not know them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    kubernetes_validate.validate(job, "1.31", strict=True)


def test_helm_values_name_no_password():
    for path in KUBERNETES.glob("*-values.yaml"):
        text = json.dumps(yaml.safe_load(path.read_text())).lower()
        assert '"existingsecret": "prefect-auth"' in text, path
        assert "authstring" not in text
        assert "password" not in text


def test_prefects_worker_accepts_the_job_template():
    """The class with which Prefect's Kubernetes worker makes a job of the template."""
    template = json.loads((KUBERNETES / "job-template.json").read_text())
    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(
            template,
            {"image": "registry.example/ldmprobe:1", "env": {"A": "b"}, "gpus": 1},
            client=mock.AsyncMock(),  # the values name no block that a server would resolve
        )
    )
    (container,) = configuration.job_manifest["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/ldmprobe:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert configuration.namespace == "ldmprobe"


def test_prefects_worker_refuses_a_job_template_with_a_mistake():
    template = json.loads((KUBERNETES / "job-template.json").read_text())
    del template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["completions"]
    with pytest.raises(ValueError, match="missing required attributes"):
        asyncio.run(
            KubernetesWorkerJobConfiguration.from_template_and_values(
                template, {}, client=mock.AsyncMock()
            )
        )
