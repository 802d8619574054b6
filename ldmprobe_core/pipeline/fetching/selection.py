"""Choice of the files of a hub repository that a run reads."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

_CONFIGS = (".json", ".txt", ".model", ".jinja")
"""Suffixes of configs, vocabularies, tokenizers and their chat templates."""

_SHARD = r"(-\d{5}-of-\d{5})?"
_WEIGHTS = re.compile(rf"(diffusion_pytorch_model|model)({_SHARD}\.safetensors)")
_WEIGHT_INDEX = re.compile(r"(diffusion_pytorch_model|model)(\.safetensors\.index\.json)")
_PICKLES = re.compile(rf"(diffusion_pytorch_model|pytorch_model){_SHARD}\.bin(\.index\.json)?")


@dataclass(frozen=True)
class FileSelection:
    """Files of a repository that a run reads, as paths within it.

    Attributes:
        configs: configs, vocabularies and tokenizers.
        weights: safetensors files and their indices.
        pickles: path of each pickle, or of an index of pickles, to that of the safetensors file
            which replaces it.
    """

    configs: tuple[str, ...]
    weights: tuple[str, ...]
    pickles: dict[str, str]


def select_files(names: Collection[str], components: Collection[str]) -> FileSelection:
    """Choose configs and default weights; choose a component's pickles if it has no safetensors.

    Variants of weights (``fp16``), weights of other libraries, and files outside the components are
    left out.

    Args:
        names: paths of all files of the repository.
        components: folders of its networks and tokenizers; ``.`` is the repository itself.
    """
    configs: list[str] = []
    weights: list[str] = []
    pickles: dict[str, str] = {}
    for component in components:
        inside = sorted(name for name in names if str(PurePosixPath(name).parent) == component)
        base = {name: PurePosixPath(name).name for name in inside}
        configs += [
            name
            for name in inside
            if base[name].endswith(_CONFIGS) and not base[name].endswith(".index.json")
        ]
        stored = [name for name in inside if _WEIGHTS.fullmatch(base[name])]
        weights += stored
        weights += [name for name in inside if stored and _WEIGHT_INDEX.fullmatch(base[name])]
        if not stored:
            pickles |= {
                name: str(PurePosixPath(name).with_name(safetensors_name(base[name])))
                for name in inside
                if _PICKLES.fullmatch(base[name])
            }
    return FileSelection(tuple(configs), tuple(weights), pickles)


def safetensors_name(pickle: str) -> str:
    """Return the name of the safetensors file that replaces a pickle of weights.

    Example: ``pytorch_model-00001-of-00002.bin`` becomes ``model-00001-of-00002.safetensors``.
    """
    return re.sub(r"\.bin\b", ".safetensors", re.sub(r"^pytorch_model", "model", pickle))
