"""Tests of the Dockerfile, its helpers, and the limits and volumes of docker-compose.yml."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from infra.containers import bases
from infra.containers.trial import CPU_WORKERS, LONG_STUDY, SERVICES, STUDY
from infra.docker.dependencies import dependencies
from infra.docker.gpu_workers import worker
from ldmprobe_core.study.schema import Study

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "infra/docker/Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    """Return the arguments of each instruction of a kind, with its continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [
        line.removeprefix(name).strip() for line in joined.splitlines() if line.startswith(name)
    ]


def position(text: str) -> int:
    assert DOCKERFILE.count(text) == 1, text
    return DOCKERFILE.index(text)


def packages() -> list[str]:
    return [p.rstrip("*") for p in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]


def test_a_change_of_the_code_repeats_no_installation_of_dependencies():
    torch = position("RUN torch=$(grep")
    others = position("pip install -c constraints.txt -r requirements.txt")
    code = position("RUN pip install --no-deps --no-build-isolation .")
    before_torch = re.findall(r"(?m)^COPY (.+) \S+$", DOCKERFILE[:torch])
    assert before_torch == ["constraints.txt"]
    before_others = re.findall(r"(?m)^COPY (.+) \S+$", DOCKERFILE[torch:others])
    assert before_others == ["pyproject.toml infra/docker/dependencies.py"]
    for name in [*packages(), "README.md"]:
        copy = re.search(rf"(?m)^COPY {re.escape(name)}\b", DOCKERFILE)
        assert copy is not None, name
        assert others < copy.start() < code, name


def test_the_image_gets_every_package_of_the_project():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name in packages():
        assert f"COPY {name} {name}" in DOCKERFILE
        assert f"!{name}" in ignored


def test_dependencies_are_those_of_the_project_and_extras():
    extras = PYPROJECT["project"]["optional-dependencies"]
    expected = {*PYPROJECT["project"]["dependencies"], *extras["kubernetes"]}
    expected |= set(PYPROJECT["build-system"]["requires"])
    text = (ROOT / "pyproject.toml").read_text()
    assert set(dependencies(text, ["kubernetes"])) == expected
    for extra in ("kubernetes", "inspyrenet"):  # those that the Dockerfile names
        assert not [line for line in extras[extra] if line.startswith("ldmprobe[")]
    assert "python dependencies.py kubernetes inspyrenet >" in DOCKERFILE


def test_the_ui_folder_belongs_to_the_user_of_the_image():
    settings = dict(re.findall(r"(\w+)=(\S+)", " ".join(instructions("ENV"))))
    assert settings["PREFECT_UI_STATIC_DIRECTORY"].startswith("/home/ldmprobe/")
    assert "useradd --create-home --uid 1000 ldmprobe" in DOCKERFILE


def test_the_image_has_the_libraries_that_opencv_loads():
    (install,) = [line for line in instructions("RUN") if "apt-get install" in line]
    assert {"libgl1", "libglib2.0-0", "libxcb1"} <= set(install.split())


def test_the_image_keeps_no_files_of_its_own_build():
    install = DOCKERFILE[position("RUN pip install --no-deps --no-build-isolation .") :]
    assert install.partition("\n")[0].endswith("&& rm -rf build ./*.egg-info")
    assert "PIP_NO_CACHE_DIR=1" in DOCKERFILE


def test_no_index_is_the_default_of_the_argument():
    assert instructions("ARG") == ["TORCH_INDEX"]
    assert "://" not in DOCKERFILE


def test_workers_and_flows_see_the_weights_and_cannot_change_them():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("dask-worker", "dask-worker-gpu", "prefect-worker"):
        targets = [volume.rpartition("}:")[2] for volume in compose[name]["volumes"]]
        assert targets == ["/weights:ro", "/hub:ro"], name
    assert "HF_HUB_CACHE=/hub" in DOCKERFILE


def test_gpu_service_has_an_image_of_its_own_and_the_command_of_its_workers():
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    gpu, cpu = service["dask-worker-gpu"], service["dask-worker"]
    assert gpu["build"]["target"] == "gpu"
    assert cpu["build"]["target"] == "cpu"
    assert gpu["command"] == "python -m infra.docker.gpu_workers tcp://dask-scheduler:8786"
    ours = worker("tcp://dask-scheduler:8786")[1:]
    assert [word.replace("GPU=1", "CPU=1") for word in ours] == cpu["command"].split()[1:]


def test_gpu_workers_are_restarted_one_by_one_and_end_with_sigterm(tmp_path):
    """Two processes write their GPU and end or wait; one ends with 0, and is started again."""
    starts = tmp_path / "starts"
    script = (
        f"printf %s $CUDA_VISIBLE_DEVICES >> {starts}; "
        f"[ $CUDA_VISIBLE_DEVICES = 0 ] && [ $(tr -d 1 < {starts} | wc -c) -lt 2 ] && exit 0; "
        "exec sleep 300"
    )
    program = (
        "import signal, sys; from infra.docker import gpu_workers as g; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        f"g.keep_running([['sh', '-c', {script!r}]] * 2, "
        "[{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '1'}])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not starts.exists() or len(starts.read_text()) < 3:
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)  # polling, bounded by the deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert sorted(starts.read_text()) == ["0", "0", "1"]


def test_trial_knows_the_base_images_and_services_of_the_repository():
    python, postgres = bases.names(ROOT)
    assert python.startswith("python:3.11")
    assert postgres.startswith("postgres:15")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert set(SERVICES) == compose.keys() - {"dask-worker-gpu"}
    short, long = (Study.model_validate(content) for content in (STUDY, LONG_STUDY))
    assert short.execution.runner == long.execution.runner == "dask"
    # A study that is stopped twice must have many more batches than workers.
    assert long.prompts.samples / long.sampling.batch >= 20 * CPU_WORKERS


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        ("", "[global]\ncert = /etc/pip-certificates.crt\n"),
        (
            "global.extra-index-url='file:///a/simple https://b/simple'\n:env:.find-links='/w'\n",
            "[global]\ncert = /etc/pip-certificates.crt\n"
            "extra-index-url = http://127.0.0.1:18080/simple/ https://b/simple\n"
            "find-links = http://127.0.0.1:18081/\n",
        ),
    ],
)
def test_pip_settings_of_made_images_name_servers_not_folders(listing, expected, monkeypatch):
    done = subprocess.CompletedProcess([], 0, listing, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert bases.pip_settings() == expected
