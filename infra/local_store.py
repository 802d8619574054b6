"""Temporary S3 object store on this machine, for tests and benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from infra.services import Platform
from infra.services import object_store as weed
from infra.setup import make_bucket
from infra.stack import free_ports
from infra.supervisor import Supervisor

KEY, SECRET = "ldmprobe-test", "not-a-real-secret-7f3a"


@contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """Run an object store (SeaweedFS) with an empty bucket ``runs`` until the context ends.

    Args:
        folder: folder for the store's data and logs.

    Yields:
        the environment variables that an S3 client needs to connect to the store.
    """
    for name in ("logs", "seaweedfs"):
        (folder / name).mkdir(parents=True)
    names = ("s3", "weed-master", "weed-volume", "weed-filer", "prefect-server", "dask-scheduler")
    secrets = {"database": "", "s3-key": KEY, "s3-secret": SECRET}
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    platform = Platform(folder, ports, secrets, workers=0)
    environment = {k: v for k, v in platform.client_environment.items() if k.startswith("AWS_")}
    supervisor = Supervisor(folder / "logs", print)
    try:
        supervisor.start(service := weed(platform))
        supervisor.wait(service)
        with mock.patch.dict(os.environ, {**environment, "LDMPROBE_STORE": "s3://runs"}):
            make_bucket()
        yield environment
    finally:
        supervisor.stop()
