"""Lookup and loading of labelers' weights: a file, a folder or the hub's cache; safetensors only.

Convert weights that are published as a pickled state dict once::

    python -m ldmprobe_core.labelers.weights model.pth      # writes model.safetensors beside it
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.sections import LabelerSpec

CONVERT = "python -m ldmprobe_core.labelers.weights"


def require_package(module: str, install: str) -> None:
    """Raise `UserError` if a package is not installed, without importing it."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"the package {module} is not installed. Fix: {install}")


def refuse_revision(spec: LabelerSpec) -> None:
    """Raise `UserError` if a revision is given, which only hub ids have."""
    if spec.revision is not None:
        raise UserError(
            f"revision: only hub ids have revisions ({spec.revision!r:.60}). Fix: leave it out"
        )


def find_folder(spec: LabelerSpec, default: str | None = None) -> Path:
    """Find a folder written by ``save_pretrained``, or a hub id's copy in the hub's cache.

    Args:
        default: hub id that is taken if the spec names no weights.

    Raises:
        UserError: there is no such folder, or it holds no safetensors file.
    """
    from huggingface_hub import snapshot_download

    source = spec.weights or default
    if source is None:
        raise UserError(
            "weights are missing. Fix: give a folder written by save_pretrained, or a hub id"
        )
    folder = Path(source).expanduser()
    if folder.is_dir():
        refuse_revision(spec)
    else:
        if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise UserError(
                f"weights {source!r}: there is no such folder. Fix: correct the path, or give a "
                "hub id"
            )
        try:
            folder = Path(snapshot_download(source, revision=spec.revision, local_files_only=True))
        except Exception as error:  # the hub's client raises many types for absent files
            raise UserError(
                f"weights {source!r} are not in this machine's hub cache. Fix: fetch them with "
                f"hf download {source}, or give a folder"
            ) from error
    if not files_of(folder):
        raise UserError(
            f"weights {str(folder)!r}: the folder holds no safetensors file. Fix: fetch one"
        )
    return folder


def files_of(folder: Path) -> list[Path]:
    """List the weight and config files of a folder; empty without safetensors files."""
    weights = list(folder.rglob("*.safetensors"))
    return [*weights, *folder.rglob("*.json")] if weights else []


def find_file(spec: LabelerSpec, published: str, cache: Path | None = None) -> Path:
    """Find a state dict in one safetensors file.

    Args:
        published: name of the published file, for the message if it is missing.
        cache: file that is taken if the spec names none.

    Raises:
        UserError: there is no such file, or it is a pickle.
    """
    refuse_revision(spec)
    path = Path(spec.weights).expanduser() if spec.weights else cache
    if path is None:
        raise UserError(f"weights are missing. Fix: give a safetensors file of {published}")
    if path.suffix in {".pth", ".pt", ".bin", ".ckpt"} and path.exists():
        raise UserError(
            f"weights {str(path)!r} are a pickle, which is never opened in a run. Fix: convert "
            f"them once with {CONVERT} {path}, then give the .safetensors file"
        )
    if not path.is_file():
        pickled = path.with_suffix(".pth")
        if pickled.is_file():
            raise UserError(
                f"weights {str(path)!r} are missing. Fix: make them with {CONVERT} {pickled}"
            )
        raise UserError(f"weights {str(path)!r} are missing. Fix: fetch {published}")
    return path


def load_state(network: nn.Module, path: Path, device: torch.device) -> nn.Module:
    """Fill a network with the weights of a safetensors file, in eval mode and float32.

    Raises:
        UserError: the file does not fit the network.
    """
    try:
        state = {name: value.float() if value.is_floating_point() else value
                 for name, value in load_file(path).items()}  # fmt: skip
        missing, _ = network.load_state_dict(state, strict=False)
    except Exception as error:  # safetensors and torch raise different ones
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"weights {str(path)!r} do not fit the network ({reason}). Fix: fetch them again"
        ) from error
    # Published files may have weights that inference does not use.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"weights {str(path)!r} do not fit the network: {missing[0]} and {len(missing) - 1} "
            "more are missing. Fix: fetch them again"
        )
    return network.to(device).eval().requires_grad_(False)


def convert(path: Path) -> Path:
    """Write a pickled state dict as a safetensors file beside it.

    torch's restricted unpickler admits tensors and plain containers only; still, convert only files
    from a trusted origin.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    out = path.with_suffix(".safetensors")
    save_file({name: value.contiguous().clone() for name, value in state.items()}, out)
    return out


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(convert(Path(name)))
