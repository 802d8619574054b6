"""Use of a diffusers pipeline object, loaded by the caller, as a study's model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import architecture_of
from ldmprobe_core.models.files.tokenization import PromptTokenizer
from ldmprobe_core.models.loading import check_drawable
from ldmprobe_core.models.sources.base import ModelSource
from ldmprobe_core.models.sources.digest import UNUSED_COMPONENTS, pipeline_digest
from ldmprobe_core.study.schema import Study
from ldmprobe_core.study.sections import PIPELINE, PIPELINE_PREFIX, Model

_in_use: ContextVar[PipelineSource | None] = ContextVar("ldmprobe_pipeline", default=None)


class PipelineSource(ModelSource):
    """Model source that uses a pipeline object of this process unchanged.

    Its weights, adapters, dtype, device and scheduler are kept.

    Args:
        pipeline: pipeline of a registered architecture.

    Attributes:
        name: value of ``model.source``, which contains the digest of the pipeline.

    Raises:
        UserError: the pipeline cannot be probed as it is.
    """

    folder = None

    def __init__(self, pipeline: Any) -> None:
        for name in ("vae", "scheduler"):
            if getattr(pipeline, name, None) is None:
                raise UserError(f"pipeline: {name} is missing. Fix: give a complete pipeline")
        try:
            self.pipeline, self.architecture = pipeline, architecture_of(pipeline)
        except AttributeError as error:
            raise UserError(
                f"pipeline: one of its networks has no config ({error!s:.80}). Fix: give the "
                "networks of diffusers, without wrappers"
            ) from error
        self.check()
        scheduler = pipeline.scheduler
        shift = getattr(scheduler, "shift", None)
        if shift is not None and shift != scheduler.config.get("shift", shift):
            raise UserError(
                f"pipeline: its scheduler has shift {shift}, but the scheduler's config, of which "
                f"the study uses a copy, has shift {scheduler.config['shift']}. Fix: set "
                "pipe.scheduler to type(pipe.scheduler).from_config(pipe.scheduler.config, "
                f"shift={shift})"
            )
        _require_tables_of_config(scheduler)
        self.name = PIPELINE_PREFIX + pipeline_digest(pipeline)

    def study_of(self, study: Study) -> Study:
        """Return a study with this pipeline as its model, and with the pipeline's scheduler.

        Raises:
            UserError: the study is of another pipeline, asks to load the model differently, or
                asks for random weights of a denoiser with adapters.
        """
        model = study.model
        if model.source.startswith(PIPELINE_PREFIX) and model.source != self.name:
            raise UserError(
                f"pipeline: its weights, adapters, configs or scheduler ({self.name}) are not "
                f"those of the study's model ({model.source}). Fix: pass the pipeline that the "
                "study was made with, unchanged, or start a new run with a study that names no "
                "pipeline object"
            )
        for key in ("attention_slicing", "cpu_offload"):
            if getattr(model, key):
                raise UserError(
                    f"model.{key}: it does not apply to a pipeline that is loaded already (true). "
                    "Fix: leave it out; to slice attention, call pipe.enable_attention_slicing()"
                )
        if study.controls.random_weights:
            check_drawable(self._denoiser)
        dtype = str(next(self._denoiser.parameters()).dtype).removeprefix("torch.")
        sampling = study.sampling.model_copy(update={"scheduler": PIPELINE})
        own = Model(source=self.name).model_copy(update={"dtype": dtype})
        return study.model_copy(update={"model": own, "sampling": sampling})

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context manager in which `pipeline_in_use` returns this source, in the calling thread.

        The pipeline's own progress bar is switched off meanwhile.
        """
        token = _in_use.set(self)
        settings = getattr(self.pipeline, "_progress_bar_config", None)
        self.pipeline.set_progress_bar_config(disable=True)
        try:
            yield
        finally:
            self.pipeline.set_progress_bar_config(**(settings or {}))
            _in_use.reset(token)

    def check(self) -> None:
        """Check that the pipeline's networks accept hooks, and are deterministic.

        Raises:
            UserError: a network is missing, compiled, offloaded or in training mode, or its dtype
                is not one that studies know.
        """
        denoiser, kind = self._denoiser, self.architecture.network
        if not isinstance(denoiser, kind):
            raise UserError(
                f"pipeline: its {self.architecture.denoiser} is a {type(denoiser).__name__}, not a "
                f"{kind.__name__}. Fix: give the pipeline before torch.compile, quantization or "
                "other wrappers"
            )
        dtype = str(next(denoiser.parameters()).dtype).removeprefix("torch.")
        if dtype not in get_args(Model.model_fields["dtype"].annotation):
            raise UserError(
                f"pipeline: its {self.architecture.denoiser} is in {dtype}. Fix: call "
                "pipe.to(torch.float32), or float16 or bfloat16"
            )
        for name, part in self.pipeline.components.items():
            if not isinstance(part, nn.Module) or name in UNUSED_COMPONENTS:
                continue
            if any(hasattr(module, "_hf_hook") for module in part.modules()):
                raise UserError(
                    f"pipeline: its {name} is offloaded to another device. Fix: call "
                    "pipe.remove_all_hooks(), then pipe.to(device)"
                )
        require_eval(self.pipeline)

    def require_weights(self) -> None:
        """Do nothing, because the pipeline is loaded."""

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Copy the denoiser, with its adapters, and the VAE to the meta device, in float32."""
        return _meta_copy(self._denoiser), _meta_copy(self.pipeline.vae)

    def tokenizer(self) -> PromptTokenizer | None:
        """Return the pipeline's own tokenizers."""
        return PromptTokenizer.of_pipeline(self.pipeline)

    def fingerprint(self) -> str:
        """Return the pipeline's digest, computed when this source was created."""
        return self.name.removeprefix(PIPELINE_PREFIX)

    def load(self, study: Study, device: torch.device) -> Any:
        """Return the pipeline object as it is, on its present device; the arguments are ignored."""
        return self.pipeline

    @property
    def _denoiser(self) -> Any:
        """The pipeline's denoiser, a UNet or a transformer."""
        return getattr(self.pipeline, self.architecture.denoiser)


def pipeline_in_use(source: str) -> PipelineSource:
    """Return the `PipelineSource` whose `in_use` context is active, for a study of its pipeline.

    Args:
        source: ``model.source`` of the study.

    Raises:
        UserError: this process was given no pipeline, or another one.
    """
    used = _in_use.get()
    if used is None or used.name != source:
        raise UserError(
            f"model.source: {source} is a pipeline object, which only the process that holds it "
            "can run, without Dask workers or the command line. Fix: give it to the Python "
            "function again, as in lp.run_study(study, store, pipeline=pipe)"
        )
    return used


def require_eval(pipeline: Any) -> None:
    """Check that no network of a diffusers pipeline draws random numbers, as dropout does.

    Raises:
        UserError: a network with dropout is in training mode.
    """
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module) or name in UNUSED_COMPONENTS:
            continue
        if any(map(_draws, part.modules())):
            raise UserError(
                f"pipeline: its {name} is in training mode, so that dropout draws from an "
                f"unseeded generator. Fix: call pipe.{name}.eval()"
            )


_TABLES = ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod")
"""Noise tables that a scheduler computes from its config, and `set_timesteps` leaves unchanged."""


def _require_tables_of_config(scheduler: Any) -> None:
    """Check that the noise levels of a scheduler object are those of its config.

    Raises:
        UserError: a table was replaced after the scheduler was made.
    """
    fresh = type(scheduler).from_config(scheduler.config)
    for name in _TABLES:
        given, expected = getattr(scheduler, name, None), getattr(fresh, name, None)
        if not (isinstance(given, Tensor) and isinstance(expected, Tensor)):
            continue
        given = given.to(expected.device, expected.dtype)
        if given.shape != expected.shape or not torch.allclose(given, expected, rtol=1e-5, atol=0):
            raise UserError(
                f"pipeline: its scheduler's {name} differs from that of the scheduler's config, of "
                "which the study uses a copy. Fix: set pipe.scheduler to type(pipe.scheduler)"
                ".from_config(pipe.scheduler.config, trained_betas=[...])"
            )


def _draws(module: nn.Module) -> bool:
    """Return whether a module is an active dropout layer, whose output is random."""
    # PyTorch publishes no common base class of its dropout layers, so check the class name.
    return module.training and "Dropout" in type(module).__name__ and getattr(module, "p", 0) > 0


def _meta_copy(network: nn.Module) -> nn.Module:
    """Copy a network with all tensors on the meta device, so that no weight is copied."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        tensors = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
                meta = torch.empty(tensor.shape, dtype=dtype, device="meta")
                is_weight = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(meta, requires_grad=False) if is_weight else meta
    return copy.deepcopy(network, memo)
