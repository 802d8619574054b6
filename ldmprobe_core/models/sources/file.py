"""Models whose weights are in one safetensors file, with configs in a separate folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import (
    create_diffusers_clip_model_from_ldm,
    is_clip_model_in_single_file,
    is_t5_in_single_file,
)
from torch import Tensor, nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.files.checkpoint import (
    FLOATS,
    StoredTensor,
    read_header,
    require_matching_tensors,
    require_weights,
    surplus_names,
    tensors_like,
)
from ldmprobe_core.models.files.components import absent_components
from ldmprobe_core.models.files.model_folder import fingerprint
from ldmprobe_core.models.loading import meta_network, prepare_pipeline
from ldmprobe_core.models.sources.folder import FolderSource
from ldmprobe_core.study.readers.value_types import user_path
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import Model

SUFFIX = ".safetensors"

_T5 = "text_encoders.t5xxl.transformer."
"""Prefix of the tensors of T5 in files of Stable Diffusion 3, where the rest are T5's own names."""


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
        """Check that the file's header lists every weight of the denoiser, VAE and text encoders.

        Raises:
            UserError: a weight is missing, of another shape, without a place or quantized, or a
                text encoder is neither in the file nor, as safetensors, in the folder of the
                configs.
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
        for name, kind in self._text_encoders().items():
            if _holds(kind, header):
                self._require_encoder(name, kind, header)
            else:
                encoder = meta_network(self.folder / name, "transformers", kind.__name__)
                if encoder is not None:
                    require_weights(self.folder / name, encoder)

    def _text_encoders(self) -> dict[str, Any]:
        """Return the class of each text encoder in the configs, by name of the component."""
        index = json.loads((self.folder / "model_index.json").read_text("utf-8"))
        return {
            name: getattr(transformers, entry[-1])
            for name, entry in index.items()
            if name.startswith("text_encoder") and isinstance(entry, list) and entry[-1]
        }

    def _require_encoder(self, name: str, kind: Any, header: dict[str, StoredTensor]) -> None:
        """Check that the file has every tensor of a text encoder."""
        if kind.__name__.startswith("T5"):
            # T5's tensors have the names of transformers behind a prefix, so that nothing of this
            # large network need be built.
            own = {
                key.removeprefix(_T5): tensor
                for key, tensor in header.items()
                if key.startswith(_T5)
            }
            t5 = meta_network(self.folder / name, "transformers", kind.__name__)
            if t5 is not None:
                require_matching_tensors(self.path, own, t5)
            return
        # Several forms of CLIP are stored, which diffusers converts, into contiguous copies: one
        # byte a value in this type, so less than 1 GB for the largest.
        small = torch.float8_e4m3fn
        zeros = {
            key: torch.zeros((), dtype=small).expand(tensor.shape) for key, tensor in header.items()
        }
        try:
            encoder = create_diffusers_clip_model_from_ldm(
                kind,
                checkpoint=zeros,
                config=str(self.folder),
                subfolder=name,
                torch_dtype=small,
                local_files_only=True,
            )
        # As for the other networks, diffusers raises errors of many types; all are caught.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"model.source: {self.path} does not fit the {name} of {self.folder} "
                f"({type(error).__name__}: {reason:.80}). Fix: set model.config to the configs of "
                "this model"
            ) from error
        self._require_loaded(name, encoder)

    def _require_loaded(self, name: str, part: nn.Module) -> None:
        """Check that a network which diffusers has loaded from the file lacks no tensor.

        Files have only one of the tensors that share values, which diffusers does not share out.
        """
        if isinstance(part, transformers.PreTrainedModel) and _without_data(part):
            part.tie_weights()
        lost = _without_data(part)
        if lost:
            raise UserError(
                f"model.source: {self.path} lacks {lost[0]} of the {name}. Fix: fetch it again"
            )

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
                f"model.source: {self.path} holds {tensors_like(surplus)} that the {kind} of "
                f"{self.folder} has no place for. Fix: set model.config to the configs of this "
                "model"
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
        header = read_header(self.path)
        # Diffusers looks for the encoders that the file lacks under a file name that transformers
        # does not write, so they are loaded here.
        encoders = {
            name: kind.from_pretrained(
                self.folder / name, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
            for name, kind in self._text_encoders().items()
            if not _holds(kind, header)
        }
        try:
            pipeline = self.architecture.diffusers_class.from_single_file(
                str(self.path),
                config=str(self.folder),
                local_files_only=True,
                torch_dtype=torch.float32,
                **self.architecture.load_arguments,
                **absent_components(self.folder, self.architecture),
                **encoders,
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
            self._require_loaded(name, part)
            if name != "vae":
                part.to(getattr(torch, study.model.dtype))
        return prepare_pipeline(pipeline, self.architecture, study, device)


def _without_data(network: nn.Module) -> list[str]:
    """Return the names of those parameters of a network that are on the meta device."""
    return [name for name, tensor in network.named_parameters() if tensor.is_meta]


def _holds(kind: type, header: Collection[str]) -> bool:
    """Return whether a file holds a text encoder of this class, by the names of its tensors."""
    is_t5 = kind.__name__.startswith("T5") and is_t5_in_single_file(header)
    return is_t5 or is_clip_model_in_single_file(kind, header)


def is_file(model: Model) -> bool:
    """Return whether a study names a single file as its model; the file need not exist."""
    suffixes = (SUFFIX, ".ckpt", ".pt", ".pth", ".bin")
    return model.config is not None or Path(model.source).suffix in suffixes
