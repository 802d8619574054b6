"""Checksums of fetched files, and conversion of pickles in a separate process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ldmprobe_core.errors import RunError, UserError


def hash_file(path: Path, algorithm: str, prefix: bytes = b"") -> str:
    """Return the hash, in hexadecimal digits, of an optional prefix followed by a file's bytes."""
    digest = hashlib.new(algorithm, prefix)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_checksum(field: str, path: Path, published: str, actual: str) -> None:
    """Compare a file's checksum with the published one, and delete the file if they differ.

    Args:
        field: key of the study, for the message.
        path: the file, or a link to it.
        published: first hexadecimal digits of the published checksum.
        actual: all digits of the file's checksum.

    Raises:
        RunError: the checksums differ.
    """
    if actual.startswith(published):
        return
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise RunError(
        f"{field}: {path.name} differs from its published checksum ({actual:.16} instead of "
        f"{published:.16}), and was deleted. Fix: repeat the command"
    )


def record_of(path: Path, **origin: Any) -> dict[str, Any]:
    """Return the record of a file: its size, its SHA-256, and where it comes from."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path, "sha256"), **origin}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record of checksums as JSON; an existing file is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    os.replace(partial, path)


def convert_pickle(field: str, pickle: Path, target: Path) -> None:
    """Convert a pickled state dict, or the index of its shards, to the safetensors format.

    A process of its own unpickles, with PyTorch's restricted unpickler and without network.  The
    pickle is deleted afterwards.

    Args:
        field: key of the study, for messages.
        pickle: path of the pickle, or of a link to it.
        target: path of the safetensors file.

    Raises:
        UserError: the pickle holds something other than tensors.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if pickle.name.endswith(".index.json"):
        from ldmprobe_core.pipeline.fetching.selection import safetensors_name

        index = json.loads(pickle.read_text("utf-8"))
        files = {name: safetensors_name(file) for name, file in index["weight_map"].items()}
        write_record(target, index | {"weight_map": files})
    else:
        # The option -P keeps modules in the current folder from being imported.
        command = [sys.executable, "-P", "-m", "ldmprobe_core.labelers.weights", str(pickle)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no reason was given"])[-1]
            raise UserError(
                f"{field}: {pickle.name} is not a pickle of tensors alone ({reason:.160}). Fix: "
                "use weights that are published as safetensors"
            )
        converted = pickle.with_suffix(".safetensors")
        if converted != target:
            # Copy the file to the target's folder first, because a move from a cache on another
            # file system would not be atomic.
            part = target.with_name(target.name + ".new")
            shutil.copyfile(converted, part)
            os.replace(part, target)
            converted.unlink()
    pickle.resolve().unlink()
    pickle.unlink(missing_ok=True)
