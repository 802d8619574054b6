"""Models in a folder, or in the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.files.components import check_components
from ldmprobe_core.models.files.model_folder import (
    config_folder,
    fingerprint,
    has_weights,
    model_folder,
)
from ldmprobe_core.models.files.tokenization import PromptTokenizer
from ldmprobe_core.models.loading import check_weights, load_pipeline, meta_modules
from ldmprobe_core.models.sources.base import ModelSource
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Model


class FolderSource(ModelSource):
    """Model whose configs and weights are files in the layout of diffusers.

    Args:
        model: section ``model`` of a study.

    Raises:
        UserError: the model's configs are not on this machine.
    """

    folder: Path

    def __init__(self, model: Model) -> None:
        self.model = model
        self.folder = config_folder(model)
        self.architecture = detect_architecture(self.folder)

    def check(self) -> None:
        """Check that the folder has the pipeline's components, and that they fit together."""
        check_components(self.folder, self.architecture)

    def require_weights(self) -> None:
        """Check that the folder has every weight tensor, without loading them."""
        if not has_weights(self.folder):
            pickles = sorted(self.folder.glob("*/*.bin"))
            if pickles:
                raise UserError(
                    f"model.source {self.model.source!r}: its weights are pickles "
                    f"({pickles[0].relative_to(self.folder)}), which are not read. Fix: load the "
                    "pipeline where you trust it, and write it with save_pretrained, as safetensors"
                )
            raise UserError(
                f"model.source {self.model.source!r}: its weights (safetensors) are not on this "
                "machine. Fix: fetch them (ldmprobe fetch), or give the folder that holds them"
            )
        check_weights(self.folder)

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Build the denoiser and the VAE on the meta device, where tensors have no data."""
        return meta_modules(self.architecture)

    def tokenizer(self) -> PromptTokenizer | None:
        """Return the model's tokenizers; None if the folder has none."""
        if not (self.folder / "tokenizer").is_dir():
            return None
        return PromptTokenizer(self.folder, self.architecture.diffusers_class)

    def fingerprint(self) -> str:
        """Return a hash of the model's config and weight files."""
        return fingerprint(model_folder(self.model))

    def load(self, study: Study, device: torch.device) -> Any:
        """Load the pipeline from the folder, with the study's scheduler."""
        return load_pipeline(study, device)
