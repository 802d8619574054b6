"""Trial that builds the images, runs the platform in containers, kills its parts, and removes it.

``make containers`` starts this module in the root of the repository.  It needs Docker with Docker
Compose, and either a running engine or root's permission to start one.  It takes about half an hour
and 20 GB of disk.  The ports of docker-compose.yml must be free.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import sys
import time
from pathlib import Path

from infra.containers import bases
from infra.containers.engine import Engine, TrialError, engine
from infra.containers.trial import BACK_LIMIT_S, CPU_WORKERS, SERVICES, START_LIMIT_S, Trial
from infra.services import HOST

IMAGES = {"cpu": "ldmprobe-trial:cpu", "gpu": "ldmprobe-trial:gpu"}


def main() -> None:
    """Run every step of the container trial, and exit with 1 if one of them fails."""
    parser = argparse.ArgumentParser(description="Try the containers on a real engine.")
    parser.add_argument(
        "--data", type=Path, default=Path(".containers"), help="folder for files of the trial"
    )
    parser.add_argument(
        "--torch-index", default="", help="package index with PyTorch for the CPU image"
    )
    parser.add_argument("--gpu-torch-index", default="", help="package index for the GPU image")
    parser.add_argument("--keep-images", action="store_true", help="keep built images")
    options = parser.parse_args()
    root = Path.cwd()
    folder = options.data.resolve()
    try:
        _require_free_ports()
        folder.mkdir(parents=True, exist_ok=True)
        with engine(folder, options.keep_images) as running, bases.local_indexes():
            _say(f"engine runs, {'our own' if running.owned else 'found'}")
            imitated = bases.provide(running, root, folder)
            _say(f"base images are there, made here: {', '.join(imitated) or 'none'}")
            indexes = {"cpu": options.torch_index, "gpu": options.gpu_torch_index}
            for target, index in indexes.items():
                _say(f"image for {target} is built: {build(running, target, index):.1f} GB")
            trial = Trial(running, _env_file(folder))
            try:
                carry_out(trial, running)
            finally:
                trial.remove()
                _say("containers, network and volumes are removed")
    except TrialError as error:
        print(f"containers: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def build(running: Engine, target: str, torch_index: str) -> float:
    """Build an image, and return its size in GB.

    Args:
        running: engine with the base images.
        target: target of the Dockerfile, ``cpu`` or ``gpu``.
        torch_index: URL of a package index with torch; empty to use pip's own index.
    """
    running.docker(
        "build", "--network", "host", "-f", "infra/docker/Dockerfile", "--target", target,
        "--build-arg", f"TORCH_INDEX={torch_index}", "-t", IMAGES[target], ".", limit_s=3600.0,
    )  # fmt: skip
    size = running.docker("image", "inspect", "-f", "{{.Size}}", IMAGES[target]).stdout
    return int(size) / 1e9


def carry_out(trial: Trial, running: Engine) -> None:
    """Start the platform in containers, run studies, kill its services, and run studies again.

    Raises:
        TrialError: something does not work, or does not come back.
    """
    trial.start()
    _say("all services are healthy")
    trial.open_ui()
    _say("the UI is served")
    trial.run_study("tabletop")
    _say("a study is complete in the bucket, and verified")
    for sentence in trial.stop_study():
        _say(sentence)
    _say("a study is complete after it was cancelled, and suspended and resumed")
    for service in SERVICES:
        trial.kill(service)
        trial.wait_until_well(START_LIMIT_S, CPU_WORKERS)
        _say(f"{service} was killed, and all services are healthy again")
    trial.try_gpu_workers(IMAGES["gpu"])
    trial.wait_until_well(BACK_LIMIT_S, CPU_WORKERS)
    _say("a GPU-style worker was killed and replaced")
    if running.owned:
        running.stop()
        running.start()
        trial.wait_until_well(START_LIMIT_S, CPU_WORKERS)
        _say("the engine was restarted, and all services are healthy again")
    trial.run_study("afterwards")
    _say("a second study is complete in the bucket, and verified")


def _env_file(folder: Path) -> Path:
    """Write an env file for docker-compose.yml with new secrets that only its owner can read."""
    path = folder / "env"
    path.touch(mode=0o600)
    values = {
        "POSTGRES_PASSWORD": secrets.token_hex(24),
        "PREFECT_AUTH": f"admin:{secrets.token_hex(24)}",
        "S3_KEY": secrets.token_hex(10),
        "S3_SECRET": secrets.token_hex(24),
        "LDMPROBE_IMAGE": IMAGES["cpu"],
        "LDMPROBE_GPU_IMAGE": IMAGES["gpu"],
        "LDMPROBE_CPU_WORKERS": str(CPU_WORKERS),
        "LDMPROBE_WEIGHTS": str(folder / "weights"),
        "LDMPROBE_HUB": str(folder / "hub"),
    }
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return path


def _require_free_ports() -> None:
    """Check that the ports that docker-compose.yml publishes are free."""
    for port in (4200, 8333, 8787):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                raise TrialError(f"port {port} is in use. Fix: stop the process that listens there")


_START = time.monotonic()


def _say(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"{time.monotonic() - _START:6.0f} s  {text}", flush=True)


if __name__ == "__main__":
    main()
