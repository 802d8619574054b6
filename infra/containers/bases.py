"""Base images of the containers: pulled from a registry, or made from Debian's packages.

On a machine that reaches no registry, the trial makes images with the names of the real ones.  The
image of Python is a minimal Debian with a copy of the Python that runs this program, and with the
machine's settings of pip.  The image of PostgreSQL is a minimal Debian with Debian's PostgreSQL.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from infra.containers.engine import Engine, TrialError

PULL_LIMIT_S = 120.0
FIRST_PORT = 18_080
"""Port of the first web server for pip's local folders; the image's pip.conf contains it."""
LIBRARIES = (
    "ca-certificates,libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6,libreadline8,"
    "libsqlite3-0,libssl3,libtirpc3,libuuid1,zlib1g"
)
CERTIFICATES = "etc/pip-certificates.crt"
"""File of the image with the certificates that pip trusts."""
POSTGRES = """
FROM {python}
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \\
    postgresql && rm -rf /var/lib/apt/lists/*
ENV PGDATA=/var/lib/postgresql/data
RUN ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/ 2>/dev/null; \\
    install -d -o postgres -g postgres $PGDATA /var/run/postgresql
USER postgres
VOLUME /var/lib/postgresql/data
CMD ["sh", "-c", "test -s $PGDATA/PG_VERSION || {{ printf %s \\"$POSTGRES_PASSWORD\\" > /tmp/p \\
    && initdb -U $POSTGRES_USER --pwfile=/tmp/p $POSTGRES_INITDB_ARGS \\
    && echo 'host all all all scram-sha-256' >> $PGDATA/pg_hba.conf \\
    && echo create database $POSTGRES_DB | postgres --single -j postgres; }}; \\
    exec postgres -h '*'"]
"""


def names(root: Path) -> tuple[str, str]:
    """Return the names of the base images of Python and PostgreSQL that the repository uses."""
    dockerfile = (root / "infra/docker/Dockerfile").read_text()
    (python,) = re.findall(r"(?m)^FROM (\S+:\S+)", dockerfile)
    compose = yaml.safe_load((root / "docker-compose.yml").read_text())
    return python, compose["services"]["postgres"]["image"]


def provide(engine: Engine, root: Path, folder: Path) -> list[str]:
    """Pull or build both base images, and return the names of those built on this machine.

    Raises:
        TrialError: an image can be neither pulled nor made.
    """
    python, postgres = names(root)
    imitated = []
    for name in (python, postgres):
        if engine.docker("image", "inspect", name, check=False).returncode == 0:
            continue
        if _pulled(engine, name):
            continue
        if name == python:
            _make_python(engine, name, folder)
        else:
            _make_postgres(engine, name, python, folder)
        imitated.append(name)
    return imitated


def _pulled(engine: Engine, name: str) -> bool:
    """Pull an image from its registry, and return whether that succeeded."""
    try:
        return engine.docker("pull", name, check=False, limit_s=PULL_LIMIT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _make_python(engine: Engine, name: str, folder: Path) -> None:
    """Build the base image of Python from Debian's packages."""
    if shutil.which("debootstrap") is None:
        raise TrialError(
            f"base image {name}: it can be neither pulled from a registry nor built, because "
            "debootstrap is missing. Fix: apt-get install debootstrap"
        )
    suite = name.rpartition("-")[2]
    root = folder / "root"
    if not (root / "etc/debian_version").exists():
        _run("debootstrap", "--variant=minbase", f"--include={LIBRARIES}", suite, str(root))
    source, target = Path(sys.base_prefix), root / "usr/local"
    shutil.copytree(
        source / "lib", target / "lib", symlinks=True, dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("site-packages", "test", "__pycache__", "*.a"),
    )  # fmt: skip
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(source / "bin" / version, target / "bin" / version)
    packages = target / "lib" / version / "site-packages"
    packages.mkdir(exist_ok=True)
    installed = Path(str(distribution("pip").locate_file("pip")))
    shutil.copytree(installed, packages / "pip", dirs_exist_ok=True)
    for program, words in (("python", ""), ("python3", ""), ("pip", " -m pip")):
        path = target / "bin" / program
        path.write_text(f'#!/bin/sh\nexec /usr/local/bin/{version}{words} "$@"\n')
        path.chmod(0o755)
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    # This bundle contains the certificates that the machine added to Debian's.  Builds on the
    # machine's network need them.
    if bundle.exists():
        shutil.copy(bundle, root / CERTIFICATES)
    (root / "etc/pip.conf").write_text(pip_settings())
    archive = folder / "python.tar"
    _run("tar", "-C", str(root), "-cf", str(archive), ".")
    engine.docker(
        "import", "--change", "ENV PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin",
        "--change", "ENV LD_LIBRARY_PATH=/usr/local/lib", str(archive), name,
    )  # fmt: skip
    archive.unlink()
    shutil.rmtree(root)


def _make_postgres(engine: Engine, name: str, python: str, folder: Path) -> None:
    context = folder / "postgres"
    context.mkdir(parents=True, exist_ok=True)
    (context / "Dockerfile").write_text(POSTGRES.format(python=python))
    engine.docker("build", "--network", "host", "-t", name, str(context))


def _run(*command: str) -> None:
    """Run a program; raise `TrialError` with the end of its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrialError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout)[-2000:]}")


def _settings() -> dict[str, str]:
    """Return the settings of this machine's pip that name the sources of packages."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    pairs = re.findall(r"(?m)^(?:global|:env:)\.(\S+)='(.*)'$", listing)
    wanted = ("index-url", "extra-index-url", "find-links")
    return {key.lstrip("."): value for key, value in pairs if key.lstrip(".") in wanted}


def _local(address: str) -> Path | None:
    """Return the folder that an address of pip's settings names, or None if it is a URL."""
    parts = urlsplit(address)
    return Path(parts.path) if parts.scheme in ("", "file") else None


def _served() -> dict[str, tuple[Path, str]]:
    """Return each local package folder, by its address, and the URL at which a build reads it.

    Pages of an index may link to files beside the index, so its parent folder is served.
    """
    served: dict[str, tuple[Path, str]] = {}
    for key, value in sorted(_settings().items()):
        for address in value.split():
            folder = _local(address)
            if folder is None:
                continue
            url = f"http://127.0.0.1:{FIRST_PORT + len(served)}/"
            if key == "find-links":
                served[address] = (folder, url)
            else:
                served[address] = (folder.parent, f"{url}{folder.name}/")
    return served


def pip_settings() -> str:
    """Return a pip.conf for a build that shares the machine's network, but not its files."""
    served = _served()
    lines = ["[global]", f"cert = /{CERTIFICATES}"]
    for key, value in _settings().items():
        addresses = [served[a][1] if a in served else a for a in value.split()]
        lines.append(f"{key} = {' '.join(addresses)}")
    return "\n".join([*lines, ""])


@contextmanager
def local_indexes() -> Iterator[None]:
    """Serve the local folders of pip's settings on loopback until the context ends."""
    quiet = subprocess.DEVNULL
    servers = []
    for folder, url in _served().values():
        port = urlsplit(url).netloc.rpartition(":")[2]
        words = ["http.server", port, "--bind", "127.0.0.1", "--directory", str(folder)]
        servers.append(subprocess.Popen([sys.executable, "-m", *words], stdout=quiet, stderr=quiet))
    try:
        yield
    finally:
        for server in servers:
            server.terminate()
            server.wait()
