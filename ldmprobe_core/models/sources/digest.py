"""Hash that identifies a diffusers pipeline object by its present weights and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

UNUSED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
"""Components of pipelines that studies do not use."""

_WITHOUT_EFFECT = (
    "name_or_path", "_version", "_commit_hash", "_use_default_values", "training",
    "_feat_map", "_conv_idx", "_conv_num",
)  # fmt: skip
"""Suffixes of the names of values that do not change results: where a model comes from, and the
caches that video autoencoders fill in each call."""


def pipeline_digest(pipeline: Any) -> str:
    """Compute a hash over everything in a pipeline object that its images depend on.

    It covers the class and the config of the pipeline and of each of its components; every weight
    and buffer of its networks, including those of adapters; the classes and the plain attributes
    of all modules, such as the scales and the names of active adapters; and the vocabularies of
    tokenizers.  It does not cover the code of classes and hooks, nor names of folders.

    Args:
        pipeline: diffusers pipeline; its weights may be on any device.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in _parts(pipeline):
        digest.update(part if isinstance(part, bytes) else _text(part))
    return digest.hexdigest()[:16]


def _parts(pipeline: Any) -> Iterator[Any]:
    """Yield the content to hash: bytes of weights, and classes and settings as plain values."""
    yield [_class_name(pipeline), _plain(dict(pipeline.config))]
    for name, component in sorted(pipeline.components.items()):
        if name in UNUSED_COMPONENTS or component is None:
            continue
        config = getattr(component, "config", {})
        config = config if isinstance(config, dict) else config.to_dict()
        yield [name, _class_name(component), _plain(config)]
        if isinstance(component, nn.Module):
            yield from _network_parts(component)
        elif hasattr(component, "get_vocab"):
            yield [component.get_vocab(), str(component.model_max_length)]
            backend = getattr(component, "backend_tokenizer", None)
            rules = json.loads(backend.to_str()) if backend is not None else {}
            # Leave out truncation and padding, because each call of the tokenizer changes them.
            yield {key: rules[key] for key in rules if key not in ("truncation", "padding")}


def _network_parts(network: nn.Module) -> Iterator[Any]:
    """Yield the content of a network to hash: its modules' settings, then its tensors."""
    for name, module in network.named_modules():
        attributes = {
            key: len(value) if "_hooks" in key and hasattr(value, "__len__") else _plain(value)
            for key, value in vars(module).items()
            if not key.endswith(_WITHOUT_EFFECT)
        }
        processor = getattr(module, "processor", None)
        yield [name, _class_name(module), attributes, _plain(getattr(processor, "__dict__", {}))]
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        yield [name, str(tensor.dtype), list(tensor.shape)]
        yield _tensor_bytes(tensor)


def _tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's values as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _text(part: Any) -> bytes:
    """Encode plain values as JSON with sorted keys, so that equal values give equal bytes."""
    return json.dumps(part, sort_keys=True).encode()


def _class_name(value: Any) -> str:
    """Return the module and name of a value's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _plain(value: Any) -> Any:
    """Convert a value to JSON types; replace an object of another type by its class name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        pairs = ((str(key), part) for key, part in value.items())
        return {key: _plain(part) for key, part in pairs if not key.endswith(_WITHOUT_EFFECT)}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    # Leave out tensors that are neither parameters nor buffers: they are caches, which the first
    # call of a network fills.
    return None if isinstance(value, Tensor) else _class_name(value)
