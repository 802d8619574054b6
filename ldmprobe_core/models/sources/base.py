"""Base class of the sources of a study's model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldmprobe_core.models.architectures.base import Architecture
from ldmprobe_core.models.files.tokenization import PromptTokenizer
from ldmprobe_core.study.schema import Study


class ModelSource(ABC):
    """Source of a study's model, such as a folder, that provides configs, tokenizers and weights.

    Attributes:
        architecture: description of the model's pipeline class, with the configs of the model.
        folder: folder of the model's configs; None if the model has none.
    """

    architecture: Architecture
    folder: Path | None

    @abstractmethod
    def check(self) -> None:
        """Check that the model has the components of its pipeline, and that they fit together.

        Raises:
            UserError: a component is missing or of an unsuitable class.
        """

    @abstractmethod
    def require_weights(self) -> None:
        """Check that the model's weights are complete, without loading them.

        Raises:
            UserError: weights are missing.
        """

    @abstractmethod
    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Build the denoiser and the VAE on the meta device, where tensors have no data."""

    @abstractmethod
    def tokenizer(self) -> PromptTokenizer | None:
        """Return the model's tokenizers; None if it has none."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the model, 16 hexadecimal digits, by which runs recognise the model."""

    @abstractmethod
    def load(self, study: Study, device: torch.device) -> Any:
        """Return the diffusers pipeline with the study's scheduler, ready for sampling."""
