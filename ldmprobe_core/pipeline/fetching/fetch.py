"""Downloads that a study needs: its model, its labelers, and prompt files of Chen et al. (2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub import constants

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.registry import (
    check_labeler,
    find_labeler,
    labelers_of,
    load_labeler,
)
from ldmprobe_core.models.files.model_folder import model_repository
from ldmprobe_core.models.sources.file import is_file
from ldmprobe_core.pipeline.fetching.failures import fetch_failures
from ldmprobe_core.pipeline.fetching.hub import list_hub_file, list_repository
from ldmprobe_core.pipeline.fetching.urls import find_url
from ldmprobe_core.pipeline.planning.store_checks import require_space
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.readers.hub_cache import HubRepository, PublishedFile, PublishedSource
from ldmprobe_core.study.readers.value_types import user_path
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Model

_PAPER = "https://github.com/yc015/scene-representation-diffusion-model/raw"

PAPER_FILES: Mapping[str, str] = {
    "train_split_prompts_seeds.csv": (
        f"{_PAPER}/fb8e90d8d7a735e610c5c7f5dc47031ea4ad6ac5/train_split_prompts_seeds.csv"
    ),
    "test_split_prompts_seeds.csv": (
        f"{_PAPER}/de20092789e87f81d9c7f3684c386139575d1183/test_split_prompts_seeds.csv"
    ),
}
"""Name of each prompt file of Chen et al. (2023) to its URL in the paper's repository."""


class Download(Protocol):
    """Download of the files of one source, such as a repository."""

    @property
    def field(self) -> str:
        """Key in the study, such as ``model.source``, that names what is downloaded."""
        ...

    @property
    def size(self) -> int:
        """Number of bytes to fetch; 0 if it is unknown."""
        ...

    def run(self, advance: Callable[[int], None]) -> None:
        """Fetch the files, and call `advance` with the number of bytes of each received part."""


@dataclass(frozen=True)
class PackageDownload:
    """Download of a labeler's weights by the labeler's package, started by loading the labeler."""

    prop: str
    spec: LabelerSpec
    size: int = 0

    @property
    def field(self) -> str:
        """Key in the study, such as ``labels.depth``, that names the labeler."""
        return f"labels.{self.prop}"

    def run(self, advance: Callable[[int], None]) -> None:
        """Load the labeler once, so that its package fetches and keeps its weights.

        Nothing happens without the package; the study's plan names it as missing.
        """
        try:
            check_labeler(self.prop, self.spec)
        except UserError:
            return
        with fetch_failures(self.field, self.spec.name):
            load_labeler(self.prop, self.spec, torch.device("cpu"))


def published_of(
    study: Study, paper_files: Mapping[str, str] = PAPER_FILES
) -> Iterator[tuple[str, PublishedSource]]:
    """Yield the published repositories and files that a study needs, with their keys in the study.

    Args:
        study: the study.
        paper_files: file name to URL of prompt files.
    """
    model, field = study.model, "model.source"
    if is_file(model):
        # Only configs and tokenizers are fetched, because the weight file is a local path.
        model, field = Model(source=str(model.config), revision=model.revision), "model.config"
    repository = model_repository(model)
    if repository is not None:
        yield field, repository
    for prop, spec in labelers_of(study).items():
        published = find_labeler(prop, spec.name).published
        for item in published(spec) if published is not None else ():
            yield f"labels.{prop}", item
    for path in (study.prompts.files or {}).values():
        target = user_path(path)
        if target.name in paper_files and not target.exists():
            yield "prompts.files", PublishedFile(target, target.name, paper_files[target.name])


def prepare_fetch(study: Study, paper_files: Mapping[str, str] = PAPER_FILES) -> list[Download]:
    """List the downloads of a study, and check that the disk has space for them.

    Raises:
        UserError: ``HF_HUB_OFFLINE`` is set, a repository or file does not exist, or the disk is
            too small.
        RunError: a server cannot be reached.
    """
    if constants.is_offline_mode():
        raise UserError(
            "HF_HUB_OFFLINE: it is set, which forbids downloads. Fix: unset it for this command"
        )
    downloads: list[Download] = []
    for field, item in published_of(study, paper_files):
        if isinstance(item, HubRepository):
            downloads.append(list_repository(field, item))
        elif "://" in item.origin:
            downloads.append(find_url(field, item))
        else:
            downloads.append(list_hub_file(field, item))
    downloads += [
        PackageDownload(prop, spec)
        for prop, spec in labelers_of(study).items()
        if find_labeler(prop, spec.name).published is None
    ]
    _require_space(sum(download.size for download in downloads))
    return downloads


def _require_space(size: int) -> None:
    """Check that the disk of the Hugging Face cache has room for a number of bytes."""
    folder = constants.HF_HUB_CACHE
    remedy = "free space, or fetch into a folder on another disk"
    require_space(Path(folder), size, f"HF_HUB_CACHE: {folder}", "the files need", remedy)
