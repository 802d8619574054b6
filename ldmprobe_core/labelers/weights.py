"""Functions that find and load the weights of labelers, from safetensors files only.

Weights that are published as a pickled state dict must be converted once::

    python -m ldmprobe_core.labelers.weights model.pth      # writes model.safetensors beside it
"""

from __future__ import annotations

import importlib.util
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.readers.hub_cache import (
    HubRepository,
    PublishedFile,
    PublishedSource,
    cached_snapshot,
    is_hub_id,
)
from ldmprobe_core.study.readers.value_types import require_readable_files, user_path

Network = TypeVar("Network", bound=nn.Module)

CONVERT = "python -m ldmprobe_core.labelers.weights"

_NOT_NEEDED = re.compile(
    r"(num_batches_tracked|position_ids|relative_position_index|mask_token)$"
    r"|neck\.fusion_stage\.layers\.0\.residual_layer1\."
)
"""Names of tensors that published weights may lack, since no output depends on what files hold.

The first are counters of training, indices that a network computes from its config, and the token
of masked patches, of which a labeler has none.  The last belong to a layer that DPT and Depth
Anything have but never call; Intel/dpt-large lacks them.
"""


def require_package(module: str, install: str) -> None:
    """Check that a package is installed, without importing it.

    Args:
        module: name under which the package is imported.
        install: command that installs it, for the message.

    Raises:
        UserError: the package is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"the labeler's package {module} is not installed. Fix: {install}")


def refuse_revision(spec: LabelerSpec) -> None:
    """Raise `UserError` if a revision is given for weights that do not come from the hub."""
    if spec.revision is not None:
        raise UserError(
            f"the labeler's key revision is {spec.revision!r:.60}, but only hub ids have "
            "revisions. Fix: leave revision out"
        )


def find_folder(spec: LabelerSpec, default: str | None = None) -> Path:
    """Find the folder of a labeler's weights, given as a local folder or a hub id.

    Nothing is downloaded: the files of a hub id must be in the Hugging Face cache.

    Args:
        spec: the study's settings of the labeler.
        default: hub id to use if the study gives no weights.

    Raises:
        UserError: the folder does not exist, has no safetensors file, or has a pipe or a device.
    """
    source = spec.weights or default
    if source is None:
        raise UserError(
            "the labeler's weights are missing. Fix: set the key weights to a folder written by "
            "save_pretrained, or to a hub id"
        )
    folder = user_path(source)
    if folder.is_dir():
        refuse_revision(spec)
        # A folder that has neither config.json nor a pipeline's model_index.json is refused here,
        # because a search for weights would walk through all of its subfolders.
        if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
            raise UserError(
                f"weights {source!r}: the folder holds no config.json. Fix: give a folder written "
                "by save_pretrained"
            )
        require_readable_files(folder, "the labeler's weights")
    else:
        if folder.exists() or not is_hub_id(source):
            raise UserError(
                f"the labeler's weights {source!r}: there is no such folder. Fix: correct the "
                "path, or give a hub id"
            )
        snapshot = cached_snapshot(source, spec.revision)
        if snapshot is None:
            raise UserError(
                f"the labeler's weights {source!r} are not in this machine's Hugging Face cache. "
                f"Fix: fetch them (ldmprobe fetch, or hf download {source}), or set weights to "
                "their folder"
            )
        folder = snapshot
    if not files_of(folder):
        raise UserError(
            f"the labeler's weights: {str(folder)!r} holds no safetensors file. Fix: fetch the "
            "weights in this format"
        )
    return folder


def published_repository(spec: LabelerSpec, default: str | None = None) -> list[PublishedSource]:
    """List the hub repository of a labeler's weights; empty if the study names a local folder.

    Args:
        spec: the study's settings of the labeler.
        default: hub id to use if the study gives no weights.
    """
    source = spec.weights or default
    if source is None or user_path(source).exists() or not is_hub_id(source):
        return []
    return [HubRepository(source, spec.revision)]


def published_file(
    spec: LabelerSpec,
    name: str,
    origin: str,
    cache: Path | None = None,
    checksum: tuple[str, str] | None = None,
) -> list[PublishedSource]:
    """List the published file of a labeler's weights; empty if it is on this machine already.

    Args:
        spec: the study's settings of the labeler.
        name, origin, checksum: see `PublishedFile`.
        cache: path of the weights if the study gives none.
    """
    target = user_path(spec.weights) if spec.weights else cache
    if target is None or target.suffix != ".safetensors" or target.exists():
        return []
    return [PublishedFile(target, name, origin, checksum)]


def files_of(folder: Path) -> list[Path]:
    """List the safetensors and JSON files in a folder; empty if it has no safetensors file."""
    weights = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    configs = [path for path in folder.rglob("*.json") if path.is_file()]
    return [*weights, *configs] if weights else []


def find_file(spec: LabelerSpec, published: str, cache: Path | None = None) -> Path:
    """Return the path of a labeler's safetensors file on this machine; nothing is downloaded.

    Args:
        spec: the study's settings of the labeler.
        published: words for the weights that the authors published, for messages.
        cache: file to use if the study gives no weights.

    Raises:
        UserError: the file does not exist, or is a pickle.
    """
    refuse_revision(spec)
    path = user_path(spec.weights) if spec.weights else cache
    if path is None:
        raise UserError(
            f"the labeler's weights are missing. Fix: set the key weights to a safetensors file of "
            f"{published}"
        )
    if path.suffix in {".pth", ".pt", ".bin", ".ckpt"} and path.exists():
        raise UserError(
            f"the labeler's weights {str(path)!r} are a pickle, which a run never opens. Fix: "
            f"convert them once with {CONVERT} {path}, then give the .safetensors file"
        )
    if path.is_dir():
        raise UserError(
            f"the labeler's weights {str(path)!r} are a folder. Fix: give the safetensors file of "
            f"{published}"
        )
    if not path.is_file():
        pickled = path.with_suffix(".pth")
        if pickled.is_file():
            raise UserError(
                f"the labeler's weights {str(path)!r} are missing. Fix: convert the pickle beside "
                f"them with {CONVERT} {pickled}"
            )
        raise UserError(f"the labeler's weights {str(path)!r} are missing. Fix: fetch {published}")
    return path


def load_state(network: Network, path: Path, device: torch.device) -> Network:
    """Load the weights of a safetensors file into a network.

    Returns:
        the network in eval mode and float32, on the device.

    Raises:
        UserError: the file cannot be read, or its tensors do not fit the network.
    """
    try:
        state = {name: value.float() if value.is_floating_point() else value
                 for name, value in load_file(path).items()}  # fmt: skip
        missing, _ = network.load_state_dict(state, strict=False)
    # For damaged or unsuitable files, safetensors and PyTorch raise exceptions of many types, so
    # all are caught.
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the labeler's weights {str(path)!r} do not fit the network ({reason}). Fix: fetch "
            "them again"
        ) from error
    # Batch normalisation uses the counters `num_batches_tracked` in training only.  Some published
    # files lack them, so their absence is accepted.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"the labeler's weights {str(path)!r} do not fit the network: {missing[0]} and "
            f"{len(missing) - 1} other tensors are missing. Fix: fetch the weights again"
        )
    return network.to(device).eval().requires_grad_(False)


def read_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """Read a network, image processor or pipeline of transformers or diffusers from a folder.

    Args:
        kind: class with the method ``from_pretrained``.
        folder: folder that ``save_pretrained`` wrote.
        options: further arguments of ``from_pretrained``.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    # For damaged or unsuitable files, the libraries raise exceptions of many types, so all are
    # caught.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"the labeler's weights {str(folder)!r} do not load ({reason:.200}). Fix: fetch them "
            "again"
        ) from error


def require_tensors(kind: Any, folder: Path) -> None:
    """Check that a folder has every tensor of its network, in the shape that the network needs.

    `from_pretrained` fills a tensor that it lacks with random numbers and only logs a warning, so
    that every process would use another labeler.  Here the library reads the files in the same way,
    but onto the meta device, where tensors have no data.

    Args:
        kind: class of the network, or class of transformers that finds it from the config.
        folder: folder that ``save_pretrained`` wrote.

    Raises:
        UserError: a tensor is missing or has another shape, or the folder cannot be read.
    """
    with _quiet_libraries():
        _, info = read_pretrained(
            kind,
            folder,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map="meta",
        )
    missing = sorted(name for name in info["missing_keys"] if not _NOT_NEEDED.search(name))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the labeler's weights {str(folder)!r} lack the tensor {missing[0]}{more}, which "
            "would be random. Fix: fetch them again, or name a model that was trained for this use"
        )
    for name, stored, needed in sorted(info["mismatched_keys"]):
        raise UserError(
            f"the labeler's weights {str(folder)!r} have the tensor {name} in shape "
            f"{tuple(stored)}, not {tuple(needed)} as in config.json. Fix: fetch config.json and "
            "weights of the same model"
        )


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence warnings of transformers and diffusers, and the bars of the former, in a block."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = transformers_logging.is_progress_bar_enabled()
    for library in libraries:
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def load_network(kind: Any, folder: Path, device: torch.device) -> Any:
    """Load a network of transformers, after `require_tensors`.

    Returns:
        the network in eval mode and with frozen weights, on the device.

    Raises:
        UserError: the weights are incomplete or do not load.
    """
    require_tensors(kind, folder)
    network = read_pretrained(kind, folder, use_safetensors=True)
    return network.to(device).eval().requires_grad_(False)


def convert(path: Path) -> Path:
    """Convert a pickled state dict to a safetensors file in the same folder.

    PyTorch's restricted unpickler loads only tensors and plain containers, but convert only files
    that you trust nevertheless.

    Entries that are not tensors, such as the number of an epoch, are left out.

    Returns:
        path of the safetensors file.

    Raises:
        UserError: the file cannot be read, or holds no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: it is no pickle of tensors and plain containers alone. Fix: save the "
            "network's state dict, not the network, with torch.save"
        ) from None
    except (OSError, EOFError, RuntimeError) as error:
        raise UserError(
            f"{path}: it cannot be read ({str(error).partition(chr(10))[0]:.120}). Fix: give a "
            "file that torch.save wrote"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    entries = state.items() if isinstance(state, Mapping) else ()
    tensors = {
        str(name): value.contiguous().clone()
        for name, value in entries
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else ""
        raise UserError(
            f"{path}: it holds no tensors by name, but a {type(content).__name__} "
            f"({found:.120}). Fix: save the network's state dict"
        )
    out = path.with_suffix(".safetensors")
    # Transformers refuses files that do not name the library that wrote them.
    save_file(tensors, out, metadata={"format": "pt"})
    return out


def _forbid_network() -> None:
    """Add an audit hook that stops this process from opening sockets or starting programs."""

    def refuse(event: str, _: object) -> None:
        if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn")):
            raise UserError(
                f"the pickle tries {event}, which loading weights never needs, so it may "
                "be harmful. Fix: use weights from a source that you trust"
            )

    sys.addaudithook(refuse)


if __name__ == "__main__":
    _forbid_network()
    for name in sys.argv[1:]:
        try:
            print(convert(Path(name)))
        except UserError as error:
            sys.exit(str(error))
