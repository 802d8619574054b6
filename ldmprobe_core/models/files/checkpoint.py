"""Check the weights in a model folder, from index files and safetensors headers alone.

If a weight tensor is missing from the files, `from_pretrained` fills it with random values and only
logs a warning, and every worker would then use a different model.  Tensors that the network has no
place for are dropped in the same way, so that a config of fewer layers gives another model.  This
module therefore looks up the name and shape of every tensor before the weights are loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ldmprobe_core.errors import UserError

_MAX_HEADER = 100 << 20
"""Largest size of a safetensors header in bytes, by the specification of the format."""

_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

FLOATS = ("F16", "BF16", "F32", "F64")
"""Data types of weights that are not quantized.

Integers and 8-bit floats are quantized weights, whose meaning depends on scales.
"""

_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""Library to the name of the weight files that it reads and writes, without ``.safetensors``."""

_RENAMED = [
    (re.compile(r"\.(query|key|value)\.(weight|bias)$"), r".to_\1.\2"),
    (re.compile(r"\.proj_attn\.(weight|bias)$"), r".to_out.0.\1"),
    (re.compile(r"\.to_query\."), ".to_q."),
    (re.compile(r"\.to_key\."), ".to_k."),
    (re.compile(r"\.to_value\."), ".to_v."),
]
"""Pairs of a pattern for old names of attention weights and the replacement by current names.

Diffusers renames these weights in the same way while it loads a checkpoint.
"""

_PREFIXES = ("text_model.", "model.", "encoder.")
"""Prefixes of tensor names that some releases of transformers add and others omit.

Transformers loads files with either form.
"""


class StoredTensor(NamedTuple):
    """Shape of a tensor in a safetensors file, and its dtype as written there, such as ``F16``."""

    shape: tuple[int, ...]
    dtype: str


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read the names, shapes and dtypes of the tensors in a safetensors file from its header.

    Raises:
        UserError: the file is incomplete, is a Git LFS pointer, or is not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(b"version"):
                raise UserError(
                    f"model: {path} is a Git LFS pointer, not the weights. Fix: fetch the file "
                    "itself (git lfs pull, or hf download)"
                )
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ValueError("the header is missing or cut off")
            # Decode as UTF-8 before parsing, because `json.loads` also accepts bytes in UTF-16.
            header = json.loads(file.read(length).decode())
        return _tensors(header, size - 8 - length)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = type(error).__name__ if isinstance(error, OSError) else str(error)
        raise UserError(
            f"model: {path} is not a complete safetensors file ({reason:.80}). Fix: fetch it again"
        ) from None


def _tensors(header: Any, data_bytes: int) -> dict[str, StoredTensor]:
    """Read the tensor entries of a safetensors header, and check them against the file's size.

    Args:
        header: the header, parsed from JSON.
        data_bytes: number of bytes that follow the header in the file.

    Raises:
        ValueError: an entry is invalid, tensors overlap or leave bytes between them, or the file
            has fewer or more bytes than declared.
    """
    tensors: dict[str, StoredTensor] = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            if not all(isinstance(value, str) for value in entry.values()):
                raise ValueError("__metadata__ has values other than strings")
            continue
        shape, (begin, stop) = tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, stop)) or begin > stop:
            raise ValueError(f"tensor {name:.60} has no valid shape or offsets")
        dtype = entry["dtype"]
        if dtype not in _DTYPE_BYTES:
            raise ValueError(f"tensor {name:.60} has an unknown dtype, {dtype!r:.20}")
        if stop - begin != math.prod(shape) * _DTYPE_BYTES[dtype]:
            raise ValueError(f"tensor {name:.60} has more or fewer bytes than its shape needs")
        tensors[name] = StoredTensor(shape, dtype)
        spans.append((begin, stop, name))
    end = 0
    for begin, stop, name in sorted(spans):
        if begin != end:
            raise ValueError(f"tensor {name:.60} does not begin where the one before it ends")
        end = stop
    if end != data_bytes:
        raise ValueError(
            f"the header declares {end} bytes of tensors, but the file holds {data_bytes}"
        )
    return tensors


def read_component(folder: Path, library: str | None = None) -> dict[str, StoredTensor]:
    """Read the names, shapes and types of all tensors of one pipeline component.

    The weights may be in one safetensors file or in several (shards) with an index.

    Args:
        folder: folder of the component, such as ``unet/``.
        library: library that loads the weights, ``diffusers`` or ``transformers``, which looks for
            a file name of its own; None takes the file name of either.

    Returns:
        tensor by name.

    Raises:
        UserError: the folder has no safetensors weights, or only those of a variant such as
            ``fp16``; or a shard is missing or a file is incomplete.
    """
    stems = tuple(_STEMS.values()) if library is None else (_STEMS[library],)
    for stem in stems:
        index = folder / f"{stem}.safetensors.index.json"
        single = folder / f"{stem}.safetensors"
        # If a folder has both shards and a single file, diffusers loads the shards, and
        # transformers loads the single file.
        if index.is_file() and not (library == "transformers" and single.is_file()):
            return _read_shards(folder, index)
        if single.is_file():
            return read_header(single)
    variants = sorted(path.name for path in folder.glob("*.safetensors"))
    if variants:
        raise UserError(
            f"model: {folder} holds only a variant of the weights ({', '.join(variants)}). Fix: "
            f"fetch the default weights, or rename the file to {' or '.join(stems)}.safetensors"
        )
    raise UserError(f"model: {folder} holds no weights (*.safetensors). Fix: fetch the weights")


def _read_shards(folder: Path, index: Path) -> dict[str, StoredTensor]:
    """Read the names, shapes and types of tensors in all shards that an index file lists."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        files = {str(name) for name in weight_map.values()}
        names = set(weight_map)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(
            f"model: {index} is not a valid index of weight files. Fix: fetch it again"
        ) from None
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(files):
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"model: shard {folder / name} is missing. Fix: fetch this file")
        tensors |= read_header(folder / name)
    missing = sorted(names - set(tensors))
    if missing:
        raise UserError(
            f"model: {index} lists the tensor {missing[0]}, but no weight file holds it. "
            "Fix: fetch the weight files again"
        )
    return tensors


def require_weights(folder: Path, network: nn.Module) -> None:
    """Check that the weight files of a component have every tensor of its network, and no others.

    Files of text encoders may have tensors of further networks, as those of a whole CLIP model do.
    They must have no further entries of a list that the network has, such as its layers.

    Args:
        folder: folder of the component, such as ``unet/``.
        network: the component's network on the meta device, which gives the names and shapes of
            its tensors.

    Raises:
        UserError: a tensor is missing, has another shape than in the network, has no place in it or
            is quantized, or a file is missing or incomplete.
    """
    library = type(network).__module__.partition(".")[0]
    component = read_component(folder, library if library in _STEMS else None)
    require_matching_tensors(folder, component, network)


def require_matching_tensors(
    place: Path, component: Mapping[str, StoredTensor], network: nn.Module
) -> None:
    """Check that a network's tensors are among those of its files, as `require_weights` does.

    Args:
        place: folder or file of the tensors, for the messages.
        component: name to tensor, from the headers of the files.
        network: the network on the meta device.

    Raises:
        UserError: a tensor is missing, has another shape than in the network, has no place in it or
            is quantized.
    """
    stored = {_current_name(name): tensor for name, tensor in component.items()}
    tied = _tied(network)
    missing, mismatched = [], []
    for name, value in network.state_dict().items():
        shape = tuple(value.shape)
        tensor = _find(stored, name)
        if tensor is None:
            copied = any(_find(stored, other) for other in tied.get(name, ()))
            if not copied and not name.endswith("position_ids"):
                missing.append(name)
            continue
        if tensor.shape != shape:
            mismatched.append(f"{name} has shape {tensor.shape}, not {shape} as in its config.json")
        elif value.is_floating_point() and tensor.dtype not in FLOATS:
            raise UserError(
                f"model: {place}: tensor {name} is stored as {tensor.dtype}, as in a quantized "
                f"model. Fix: use weights of the type {', '.join(FLOATS)}"
            )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"model: {place} lacks the tensor {missing[0]}{more}. Fix: fetch its weights again"
        )
    if mismatched:
        raise UserError(
            f"model: in the weights of {place}, tensor {mismatched[0]}. Fix: fetch config.json "
            "and weights of the same model"
        )
    names = {alias for name in network.state_dict() for alias in _aliases(name)}
    surplus = surplus_names(stored, names, network)
    fix = "fetch config.json and weights of the same model"
    if type(network).__module__.startswith("transformers."):
        surplus = _in_lists(surplus, names)
        fix += ", or to leave out layers, save the shorter network with save_pretrained"
    if surplus:
        raise UserError(
            f"model: {place} holds {tensors_like(surplus)} that its config.json has no place for. "
            f"Fix: {fix}"
        )


def tensors_like(names: Sequence[str]) -> str:
    """Return number and first name of some tensors, such as ``2 tensors (conv.bias, ...)``."""
    return (
        f"1 tensor ({names[0]})" if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...)"
    )


_LEFTOVERS = ("caption_projection.y_embedding",)
"""Tensors of published files that no network reads: this one is in those of PixArt-alpha."""


def surplus_names(stored: Collection[str], names: Collection[str], network: nn.Module) -> list[str]:
    """Return the names of stored tensors that a network does not read, sorted.

    Buffers that the network computes itself are left out, and so are moving averages of weights
    during training (EMA), which some files hold beside the weights.

    Args:
        stored: names of the stored tensors.
        names: names of the network's tensors, in all forms that a file may have.
        network: the network.
    """
    buffers = {alias for name, _ in network.named_buffers() for alias in _aliases(name)}
    ignored = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    return sorted(
        name
        for name in stored
        if name not in names
        and name not in buffers
        and not name.endswith("position_ids")
        and not name.startswith("model_ema.")
        and name not in _LEFTOVERS
        and not any(re.search(pattern, name) for pattern in ignored)
    )


def _in_lists(surplus: list[str], names: Collection[str]) -> list[str]:
    """Return those tensor names that are further entries of a numbered list of a network."""
    entries = {entry for name in names for entry in _list_entries(name)}
    lists = {listed for listed, _ in entries}
    return [
        name
        for name in surplus
        if any(entry[0] in lists and entry not in entries for entry in _list_entries(name))
    ]


def _list_entries(name: str) -> list[tuple[str, str]]:
    """Return list and number of each list entry in a name: ``a`` and ``0`` in ``a.0.weight``."""
    return [(name[: match.start()], match[1]) for match in re.finditer(r"\.(\d+)(?=\.)", name)]


def _current_name(name: str) -> str:
    """Convert a tensor name of an old checkpoint to its name in current diffusers."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _aliases(name: str) -> Iterable[str]:
    """Yield the names that a network's tensor may have in a weight file, most likely first."""
    yield name
    for prefix in _PREFIXES:
        yield prefix + name
        if name.startswith(prefix):
            yield name.removeprefix(prefix)
    # Earlier releases of transformers saved the text part of vision-language models without the
    # prefix ``language_model.``.
    yield name.replace("language_model.", "", 1)
    # Checkpoints of the Llava family, such as Mistral 3, include the head of the language model.
    # Their tensor names therefore begin with ``language_model.model.`` instead of
    # ``model.language_model.``.
    yield name.replace("model.language_model.", "language_model.model.", 1)
    yield f"language_model.{name}"


def _find(stored: dict[str, StoredTensor], name: str) -> StoredTensor | None:
    """Return the tensor of a weight file that a network's tensor is read from; None if it lacks."""
    return next((stored[alias] for alias in _aliases(name) if alias in stored), None)


def _tied(network: nn.Module) -> dict[str, set[str]]:
    """Return the tied tensors of a network, by name, with the names of those that share its values.

    A weight file may omit all but one of the tensors that share values.
    """
    sharing: dict[str, set[str]] = {}
    for prefix, module in network.named_modules():
        # Transformers lists pairs: the name of a copy, and of the tensor that it is a copy of.
        keys = getattr(module, "_tied_weights_keys", None)
        for pair in keys.items() if isinstance(keys, dict) else ():
            copy, source = (f"{prefix}.{key}".lstrip(".") for key in pair)
            sharing.setdefault(source, {source}).add(copy)
    return {name: names - {name} for names in sharing.values() for name in names}
