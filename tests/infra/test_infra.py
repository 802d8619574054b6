"""What infra/ describes: it parses, it is valid, and containers are what `make stack` starts."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from unittest import mock

import jsonschema
import kubernetes_validate
import pytest
import yaml

from flows.classify import classify_flow
from flows.intervene import intervene_flow
from flows.local_cluster import local_cluster
from flows.study import study_flow
from flows.workers import cluster_spec, runner_of
from infra import services
from infra.services import Platform
from infra.supervisor import Supervisor
from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.study.loading import load_study
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Execution

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"

FILLED = {"POSTGRES_PASSWORD": "p", "PREFECT_AUTH": "admin:p", "S3_KEY": "k", "S3_SECRET": "s"}


@pytest.fixture(scope="module")
def compose():
    """docker-compose.yml with its variables filled in, as compose itself would."""
    text = (ROOT / "docker-compose.yml").read_text()
    known = {**FILLED, "LDMPROBE_GPUS": "1"}
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: known.get(m[1], m[2]), text)
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda m: known[m[1]], text)
    assert "${" not in text
    return yaml.safe_load(text)["services"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What `make stack` starts, by name."""
    ports = services.PUBLIC_PORTS | {
        name: 20_000 + i for i, name in enumerate(services.INNER_PORTS)
    }
    secrets = {"database": "p", "s3-key": "k", "s3-secret": "s"}
    platform = Platform(tmp_path_factory.mktemp("stack"), ports, secrets, workers=2)
    with mock.patch.object(services, "postgres_program", lambda name: name):
        return {service.name: service for service in platform.services()}


def compose_accepts(folder: Path, values: dict[str, str]) -> subprocess.CompletedProcess[str]:
    env_file = folder / "env"
    example = (ROOT / ".env.example").read_text()
    for name, value in values.items():
        example = re.sub(rf"(?m)^{name}=.*$", f"{name}={value}", example)
    env_file.write_text(example)
    return subprocess.run(
        ["docker-compose", "--env-file", str(env_file), "-f", str(ROOT / "docker-compose.yml"),
         "config"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(
    shutil.which("docker-compose") is None and "LDMPROBE_STACK_REQUIRED" not in os.environ,
    reason="needs docker-compose; .ci/run installs it and insists",
)
def test_compose_takes_the_file_and_refuses_an_empty_secret(tmp_path):
    done = compose_accepts(tmp_path, FILLED)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"]["prefect-server"]["ports"] == [
        "127.0.0.1:4200:4200/tcp"
    ]
    for name in FILLED:
        refused = compose_accepts(tmp_path, FILLED | {name: ""})
        assert refused.returncode != 0
        assert f"set {name} in .env" in refused.stderr


def test_containers_are_the_services_of_the_stack(compose, local):
    plain = {name.rstrip("-0123456789") for name in local}
    assert plain == {name.removesuffix("-gpu") for name in compose}
    for name, service in compose.items():
        assert service["restart"] == "on-failure:20", name
        if not name.startswith("dask-worker"):  # the scheduler knows whether its workers live
            assert "healthcheck" in service, name


def flags(words: list[str]) -> dict[str, str]:
    """Options of a command; what differs by place (hosts, ports, folders) is left out."""
    placed = {"host", "port", "dir", "ip", "ip.bind", "name", "dashboard-address"}
    placed |= {"local-directory", "s3.port", "master.port", "volume.port", "filer.port", "D", "h"}
    placed |= {"p", "c"}
    found = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("-") and word != "-m":
            key, equals, value = word.lstrip("-").partition("=")
            if not equals and not following.startswith("-"):
                value = following
            if key not in placed:
                found[key] = value
    return found


@pytest.mark.parametrize("name", ["prefect-server", "seaweedfs", "dask-scheduler", "dask-worker",
                                  "prefect-worker"])  # fmt: skip
def test_commands_are_the_same_but_for_places(compose, local, name):
    command = compose[name]["command"]
    if command.startswith("sh -c"):
        command = command.split("exec ")[1].rstrip('"')
    words, ours = command.split(), list(local.get(name, local.get(f"{name}-0")).command)
    program = ours[2] if ours[1] == "-m" else Path(ours[0]).name
    assert program in words[:3]
    assert flags(words) == flags(ours)


@pytest.mark.parametrize("name", ["prefect-server", "seaweedfs", "dask-worker", "prefect-worker"])
def test_settings_are_the_same_but_for_places(compose, local, name):
    theirs = compose[name]["environment"]
    ours = local.get(name, local.get(f"{name}-0")).environment
    only_there = {"PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"}  # beyond loopback
    only_here = {"PREFECT_HOME"}  # the image has it
    assert theirs.keys() - only_there == ours.keys() - only_here
    placed = {"PREFECT_API_URL", "PREFECT_UI_API_URL", "AWS_ENDPOINT_URL", "LDMPROBE_HOME",
              "LDMPROBE_DASK",
              "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_WORKER_WEBSERVER_PORT"}  # fmt: skip
    for key in (theirs.keys() & ours.keys()) - placed:
        assert theirs[key] == ours[key], key
    if name == "prefect-server":
        url = ours["PREFECT_API_DATABASE_CONNECTION_URL"]
        container = theirs["PREFECT_API_DATABASE_CONNECTION_URL"]
        assert re.sub(r"@[^/]+", "", container) == re.sub(r"@[^/]+", "", url)


def test_ports_are_the_usual_ones_on_loopback_and_dask_is_never_published(compose):
    published = {name: service["ports"] for name, service in compose.items() if "ports" in service}
    ports = services.PUBLIC_PORTS
    assert published == {
        "prefect-server": [f"127.0.0.1:{ports['prefect-server']}:{ports['prefect-server']}"],
        "seaweedfs": [f"127.0.0.1:{ports['s3']}:{ports['s3']}"],
        "dask-scheduler": [f"127.0.0.1:{ports['dask-dashboard']}:{ports['dask-dashboard']}"],
    }


def test_no_container_is_root_or_may_become_it(compose):
    for name, service in compose.items():
        if name != "postgres":  # whose image drops root itself
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
    lines = (ROOT / "infra/docker/Dockerfile").read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim-\w+", base)
    assert [line for line in lines if line.startswith("USER ")] == ["USER ldmprobe"]
    for image in {s["image"] for s in compose.values()} - {"ldmprobe:latest"}:
        assert re.search(r":\d+\.\d+", image), image
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert "!.env" not in ignored
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.fixture(scope="module")
def deployments():
    return yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())["deployments"]


def test_every_flow_is_deployed_to_every_kind_of_pool(deployments):
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


def test_what_is_deployed_is_the_ready_study(deployments):
    for deployment in deployments:
        if "study" in deployment["parameters"]:
            study = Study.model_validate(deployment["parameters"]["study"])
            assert study.hash == load_study("tabletop").hash
            assert study.execution.runner == "dask"
        else:
            Intervention.model_validate(deployment["parameters"]["what"])


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
    """The same schema, which takes no key that it does not name."""
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


def test_a_mistake_in_a_manifest_is_found(dask_schemas):
    """The checks above can fail: an unknown key, a wrong type."""
    cluster = yaml.safe_load((KUBERNETES / "dask-cluster.yaml").read_text())["spec"]
    spec = closed(dask_schemas["DaskCluster"]["properties"]["spec"])
    for wrong in ({**cluster, "workers": 3}, {**cluster, "worker": {"replicas": "many"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, spec)


def test_the_job_template_makes_a_valid_job():
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
    container["resources"]["limits"]["nvidia.com/gpu"] = "1"  # the API takes both, the schema one
    kubernetes_validate.validate(job, "1.31", strict=True)


def test_helm_values_name_no_password_and_no_address_but_the_clusters():
    for path in KUBERNETES.glob("*-values.yaml"):
        text = json.dumps(yaml.safe_load(path.read_text())).lower()
        assert '"existingsecret": "prefect-auth"' in text, path
        assert "authstring" not in text
        assert "password" not in text


def test_a_cluster_of_its_own_has_the_studys_number_of_workers():
    execution = Execution(
        runner="dask", cluster=str(KUBERNETES / "dask-cluster.yaml"), workers=5, gpus_per_worker=1
    )
    one, two = cluster_spec(execution), cluster_spec(execution)
    assert one["spec"]["worker"]["replicas"] == 5
    names = {spec["metadata"]["name"] for spec in (one, two)}
    assert len(names) == 2  # one flow's end must not be another's
    selector = one["spec"]["scheduler"]["service"]["selector"]
    assert selector["dask.org/cluster-name"] == one["metadata"]["name"]
    runner = runner_of(execution)
    assert runner.resolved_cluster_class.__name__ == "KubeCluster"
    assert (
        runner.cluster_kwargs.keys()
        <= inspect.signature(runner.resolved_cluster_class.__init__).parameters.keys()
    )


@pytest.mark.parametrize("content", [None, "a: [", "kind: Pod", "- 1", "kind: DaskCluster"])
def test_a_cluster_file_that_is_none_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"execution.cluster is .*cluster.yaml"):
        cluster_spec(Execution(runner="dask", cluster=str(path)))


@pytest.mark.slow
def test_local_workers_have_a_gpu_each_of_those_that_are_ours(monkeypatch):
    from distributed import Client

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with pytest.raises(UserError, match=r"execution.workers is 3.*has 2 GPUs"):
        local_cluster(workers=3, gpus=1)
    with local_cluster(workers=2, gpus=1) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        told = client.scheduler_info()["workers"].values()
        assert [w["resources"] for w in told] == [{"GPU": 1.0}] * 2
        assert {w["nthreads"] for w in told} == {1}
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert sorted(seen.values()) == ["4", "7"]


def test_a_service_that_ends_is_started_again_and_all_are_stopped(tmp_path):
    """A counter of starts, kept by the service itself, whose first two starts end at once."""
    starts = tmp_path / "starts"
    script = (
        f"echo >> {starts}; [ $(wc -l < {starts}) -lt 3 ] && exit 3; trap 'exit 0' TERM; "
        "while true; do read -t 0.1 < /dev/zero; done"
    )
    said = []
    supervisor = Supervisor(tmp_path, said.append)
    service = services.Service(
        "counter", ("bash", "-c", script),
        lambda: starts.exists() and len(starts.read_text().splitlines()) >= 3,
    )  # fmt: skip
    supervisor.start(service)

    def until_well():
        import threading
        import time

        deadline = time.monotonic() + 60
        while not service.is_well() and time.monotonic() < deadline:
            threading.Event().wait(0.05)  # polling, bounded by the deadline
        process = supervisor.running["counter"][1]
        supervisor.stop()
        return process

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(until_well)
        supervisor.watch()
        assert last.result(60).poll() is not None
    assert said == ["counter ended (3) and is started again"] * 2
    assert len(starts.read_text().splitlines()) == 3
