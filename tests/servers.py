"""Real servers for tests, on loopback, stopped when the test is over."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import s3fs

KEY, SECRET = "ldmprobe-test", "not-a-real-secret-7f3a"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, each below 55,536 (SeaweedFS adds 10,000 for gRPC)."""
    held, ports = [], []
    while len(ports) < count:
        probe = socket.socket()
        probe.bind(("127.0.0.1", 0))
        held.append(probe)
        port = probe.getsockname()[1]
        if port < 55_000:
            ports.append(port)
    for probe in held:
        probe.close()
    return ports


@contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """SeaweedFS with a bucket ``runs``; yields the environment an S3 client needs."""
    folder.mkdir(parents=True)
    keys = {
        "identities": [
            {
                "name": "tests",
                "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }
    (folder / "s3.json").write_text(json.dumps(keys))
    master, volume, filer, s3 = free_ports(4)
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    with (folder / "weed.log").open("w") as log:
        process = subprocess.Popen(
            [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
             f"-s3.config={folder}/s3.json", f"-master.port={master}", f"-volume.port={volume}",
             f"-filer.port={filer}", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0",
             "-master.telemetry=false",
             "-volume.preStopSeconds=1", "-master.volumeSizeLimitMB=64"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    environment = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        files = s3fs.S3FileSystem(
            key=KEY, secret=SECRET, endpoint_url=environment["AWS_ENDPOINT_URL"],
            use_listings_cache=False, skip_instance_cache=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                files.mkdir("runs")
                files.pipe_file("runs/probe", b"there")
                files.rm_file("runs/probe")
                break
            except Exception:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError((folder / "weed.log").read_text()[-2000:]) from None
                time.sleep(0.3)  # polling a server's start, bounded by the deadline
        yield environment
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
