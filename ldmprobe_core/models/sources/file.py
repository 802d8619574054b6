"""Models whose weights are in one safetensors file, with configs in a separate folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import is_clip_model_in_single_file, is_t5_in_single_file
from torch import Tensor, nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.files.checkpoint import FLOATS, read_component, read_header, surplus_names
from ldmprobe_core.models.files.model_folder import fingerprint
from ldmprobe_core.models.loading import prepare_pipeline
from ldmprobe_core.models.sources.folder import FolderSource
from ldmprobe_core.study.readers.value_types import user_path
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Model

SUFFIX = ".safetensors"


class FileSource(FolderSource):
    """Model whose denoiser and VAE are in one file, under the tensor names of the original release.

    The names are those of the authors' code, which differ from those of diffusers.  Text encoders
    that the file lacks are taken from the folder of the configs.

    Args:
        model: section ``model`` of a study.

    Raises:
        UserError: the file or the configs are not on this machine, or the file is not of the type
            safetensors.
    """

    def __init__(self, model: Model) -> None:
        self.path = user_path(model.source)
        if self.path.suffix != SUFFIX or model.config is None:
            raise UserError(
                f"model.config: a model in a single file needs a {SUFFIX} file as model.source and "
                f"a folder of configs as model.config ({model.source!r:.60}, {model.config!r:.60})."
                " Fix: give both, or give a model folder alone as model.source"
            )
        super().__init__(Model(source=model.config, revision=model.revision))
        if not hasattr(self.architecture.diffusers_class, "from_single_file"):
            raise UserError(
                f"model.source: a {self.architecture.pipeline_name} cannot be loaded from a single "
                f"file ({model.source!r:.60}). Fix: give a folder written by save_pretrained"
            )

    def require_weights(self) -> None:
        """Check that the file's header lists every weight of the denoiser and the VAE.

        Raises:
            UserError: a weight is missing, of another shape or quantized, or the text encoders are
                neither in the file nor, as safetensors, in the folder of the configs.
        """
        header = read_header(self.path)
        quantized = [name for name, tensor in header.items() if tensor.dtype not in FLOATS]
        if any(name.endswith("weight") for name in quantized):
            raise UserError(
                f"model.source: tensor {quantized[0]} of {self.path} is quantized. Fix: use the "
                f"weights before quantization ({', '.join(FLOATS)})"
            )
        tensors = {
            name: torch.empty(tensor.shape, device="meta") for name, tensor in header.items()
        }
        for network in self.networks():
            self._require_all(network, tensors)
        index = json.loads((self.folder / "model_index.json").read_text("utf-8"))
        for name, entry in index.items():
            if name.startswith("text_encoder") and isinstance(entry, list) and entry[-1]:
                kind = type(entry[-1], (), {})
                if not (is_clip_model_in_single_file(kind, tensors) or _is_t5(kind, tensors)):
                    read_component(self.folder / name)

    def _require_all(self, network: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Check that the file's tensors, after diffusers has renamed them, match a network."""
        kind = type(network).__name__
        convert = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
        try:
            given = convert(config=dict(network.config), checkpoint=dict(tensors))  # type: ignore[arg-type]
        # If tensors are missing, the conversion functions of diffusers raise errors of many types,
        # so all errors are caught.
        except Exception as error:
            raise UserError(
                f"model.source: {self.path} is not the {kind} that the configs in {self.folder} "
                f"describe ({type(error).__name__}: {error!s:.80}). Fix: set model.config to the "
                "configs of this model"
            ) from error
        for name, value in network.state_dict().items():
            if name not in given or given[name].shape != value.shape:
                shape = tuple(given[name].shape) if name in given else "missing"
                raise UserError(
                    f"model.source: {self.path} does not fit the {kind} of {self.folder} ({name} "
                    f"is {shape}, not {tuple(value.shape)}). Fix: set model.config to the "
                    "configs of this model"
                )
        # Some conversion functions also return the tensors of other networks, under their names.
        parts = {name.partition(".")[0] for name in network.state_dict()}
        surplus = [
            name
            for name in surplus_names(given, network.state_dict().keys(), network)
            if name.partition(".")[0] in parts or name not in tensors
        ]
        if surplus:
            raise UserError(
                f"model.source: {self.path} holds {len(surplus)} tensors that the {kind} of "
                f"{self.folder} has no place for, such as {surplus[0]}. Fix: set model.config to "
                "the configs of this model"
            )

    def fingerprint(self) -> str:
        """Return a hash of the weight file and of the config folder's configs and text encoders."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(fingerprint(self.folder).encode())
        return digest.hexdigest()[:16]

    def load(self, study: Study, device: torch.device) -> Any:
        """Load the pipeline from the file: the VAE in float32, the rest in ``model.dtype``."""
        self.require_weights()
        try:
            pipeline = self.architecture.diffusers_class.from_single_file(
                str(self.path),
                config=str(self.folder),
                local_files_only=True,
                torch_dtype=torch.float32,
                **self.architecture.load_arguments,
            )
        # Diffusers raises errors of many types for files that it cannot convert; all are caught.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"model.source: {self.path} does not load ({reason:.120}). Fix: set model.config "
                "to a folder with this model's configs and with the text encoders that the file "
                "lacks"
            ) from error
        for name, part in pipeline.components.items():
            if not isinstance(part, nn.Module):
                continue
            lost = [key for key, tensor in part.named_parameters() if tensor.is_meta]
            if lost:
                raise UserError(
                    f"model.source: {self.path} lacks {lost[0]} of the {name}. Fix: fetch it again"
                )
            if name != "vae":
                part.to(getattr(torch, study.model.dtype))
        return prepare_pipeline(pipeline, self.architecture, study, device)


def _is_t5(kind: type, tensors: dict[str, Tensor]) -> bool:
    """Return whether a text encoder is a T5 whose weights are among a file's tensors."""
    return kind.__name__.startswith("T5") and is_t5_in_single_file(tensors)


def is_file(model: Model) -> bool:
    """Return whether a study names a single file as its model; the file need not exist."""
    suffixes = (SUFFIX, ".ckpt", ".pt", ".pth", ".bin")
    return model.config is not None or Path(model.source).suffix in suffixes
