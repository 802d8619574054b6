"""Write a property into the activations, denoise on, and see whether the image follows.

The paper's causal test (Chen, Viégas & Wattenberg 2023, section 5), on the conditional half, in
the first steps, with its own method and with an exact one.  Controls: the unedited image, a random
change of the same norm, and the same edit through probes trained on shuffled labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from ldmprobe_core.capture import VAE, image_item
from ldmprobe_core.cells import LabelSet, probe_activations
from ldmprobe_core.edits import Direction, by_adam, random_like, reading_of
from ldmprobe_core.errors import UserError
from ldmprobe_core.families import Grid, change_grid
from ldmprobe_core.generate import Generator
from ldmprobe_core.metrics import block_means, dice, rmse, spearman
from ldmprobe_core.probes import Probe
from ldmprobe_core.prompts import Sample
from ldmprobe_core.ridge import Moments
from ldmprobe_core.store import Run
from ldmprobe_core.study_file import sentence
from ldmprobe_core.summing import deals_of
from ldmprobe_core.tallies import sums_of
from ldmprobe_core.targets import Target, aim

VARIANTS = ("edited", "random", "shuffled")
METRICS = {"foreground": ("dice",), "depth": ("spearman", "rmse")}
DECODER = ("up_blocks.*",)

_CONFIDENCE = 0.98
_DEFAULT_STEPS = {"foreground": 5, "depth": 3}


class Intervention(BaseModel):
    """What is edited, where, and how.  None takes the paper's setting for the property.

    Attributes:
        prop: the property that is written.
        targets: each sample is edited towards each of them.
        samples: number of held-out test samples, the first by index; or ``chosen`` by index.
        method: ``exact`` (closed form) or ``adam`` (the paper's descent).
        steps: the first so many are edited: 5 for foreground, 3 for depth.
        layers: globs over the run's layers: the decoder's for foreground, all for depth.
        confidence: the probability that a logistic probe is to read inside the mask, and one less
            it outside.
        strength: share of the way to the target that an exact edit goes, at every cell.
        metric: in which a change is small: ``l2``, or the activations' own ``covariance``.
        controls: also edit at random and through shuffled-label probes.
        part: whose samples are edited: test, or validation, to find settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prop: Literal["foreground", "depth"] = "foreground"
    targets: tuple[Target, ...] = (Target(dx=0.2),)
    samples: Annotated[int, Field(ge=1)] = 8
    chosen: tuple[int, ...] | None = None
    method: Literal["exact", "adam"] = "exact"
    steps: Annotated[int, Field(ge=1)] | None = None
    layers: tuple[str, ...] | None = None
    kind: Literal["ridge", "logistic", "adam"] | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = _CONFIDENCE
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    metric: Literal["l2", "covariance"] = "covariance"
    iterations: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    controls: bool = True
    part: Literal["test", "validation"] = "test"
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _distinct(self) -> Intervention:
        if len(set(self.targets)) < len(self.targets) or not self.targets:
            raise ValueError("targets: name at least one, and each once")
        if self.method == "adam" and (self.strength, self.confidence) != (1.0, _CONFIDENCE):
            raise ValueError("strength and confidence are of exact edits: leave them out with adam")
        return self

    @property
    def name(self) -> str:
        """Folder of its results in the run: property, method and a hash of the rest."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return f"{self.prop}-{self.method}-{digest}"


def parse_intervention(content: dict[str, Any]) -> Intervention:
    """Validate a mapping.

    Raises:
        UserError: one sentence naming the first wrong field and its value.
    """
    try:
        return Intervention.model_validate(content)
    except ValidationError as error:
        raise UserError(f"intervention: {sentence(error)}") from None


@dataclass(frozen=True)
class Plan:
    """An intervention on a run, checked.

    Attributes:
        samples: indices of who is edited.
        layers: names of the edited layers.
        steps: how many steps are edited.
        kind: of the probes.
    """

    samples: list[int]
    layers: list[str]
    steps: int
    kind: str


def plan_intervention(run: Run, what: Intervention) -> Plan:
    """Check an intervention against a run, before anything is loaded.

    Raises:
        UserError: the run does not hold what it needs.
    """
    study = run.study()
    if study.source == "images":
        raise UserError(
            f"{run.url} looked at pictures and generated none: there is nothing to edit"
        )
    if what.prop not in study.labels.maps:
        raise UserError(
            f"property is {what.prop!r}, and {run.url} has probes of "
            f"{', '.join(study.labels.maps)} only: choose one of them"
        )
    if what.controls and study.capture.store == "statistics" and not study.controls.shuffled:
        raise UserError(
            f"controls is true, and the statistics of {run.url} hold no sums with shuffled labels "
            "(its study has controls.shuffled false): set controls to false"
        )
    marks = run.marks("probed")
    total = len(marks)
    steps = what.steps or min(_DEFAULT_STEPS[what.prop], total)
    if steps > total:
        raise UserError(f"steps is {steps}, and the run has {total}: lower it")
    for glob in what.layers or ():
        if not any(fnmatchcase(name, glob) for name in run.layers):
            raise UserError(f"layers {glob} match none of {', '.join(run.layers)}")
    globs = what.layers or (DECODER if what.prop == "foreground" else ("*",))
    layers = [
        name
        for name in run.layers
        if any(fnmatchcase(name, glob) for glob in globs) and not name.startswith(VAE)
    ]
    if not layers and what.layers is None:  # a denoiser without a decoder: all of it
        layers = [name for name in run.layers if not name.startswith(VAE)]
    if not layers:
        raise UserError(f"layers {', '.join(globs)} match none of {', '.join(run.layers)}")
    columns = [run.probed.index(name) for name in layers]
    for step in range(steps):
        missing = [name for name, c in zip(layers, columns, strict=True) if not marks[step, c]]
        if missing:
            raise UserError(
                f"{run.url} has no probe of {missing[0]} at step {step + 1}: finish the run with "
                "ldmprobe run, then edit"
            )
    wanted = what.kind or ("logistic" if what.prop == "foreground" else "ridge")
    kinds = study.probes.kinds
    if wanted not in kinds and what.kind is None:
        wanted = kinds[0]
    if wanted not in kinds or (wanted == "logistic" and what.prop != "foreground"):
        raise UserError(f"kind is {wanted!r}, which no probe of {what.prop} in this run is")
    if what.confidence != _CONFIDENCE and not (what.prop == "foreground" and wanted != "ridge"):
        raise UserError(f"confidence is of logits of masks, and kind is {wanted}: leave it out")
    if what.method == "adam" and what.prop == "foreground" and wanted == "ridge":
        raise UserError("method adam needs logits of masks, which kind ridge lacks: use exact")
    return Plan(_samples(run, what), layers, steps, wanted)


def _samples(run: Run, what: Intervention) -> list[int]:
    split = run.open("samples").split.values[: run.stored]
    part = [int(i) for i in np.flatnonzero(split == what.part)]
    if what.chosen is None:
        if what.samples > len(part):
            raise UserError(
                f"samples is {what.samples}, and the run has {len(part)} {what.part} samples: "
                "lower it"
            )
        return part[: what.samples]
    wrong = [i for i in what.chosen if i not in part]
    if wrong:
        raise UserError(
            f"sample {wrong[0]} is not among the run's {what.part} samples, as {part[0]} is"
        )
    return list(what.chosen)


class Editor:
    """Edits the outputs of layers while a pipeline runs: cells of the first steps, in their turn.

    Args:
        generator: holds the pipeline, and knows how its guidance is called.
        directions: (step, layer) to the cell's direction; steps from 1.
        aims: layer's grid to the readings aimed at (n, y, x), or the full-size target for Adam.
    """

    def __init__(
        self,
        generator: Generator,
        directions: dict[tuple[int, str], Direction],
        change: Any,
    ) -> None:
        self.generator, self.directions, self.change = generator, directions, change
        self._calls = 0
        self._grid: Grid = generator.family.grid

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hook the denoiser for one pipeline call."""
        modules = dict(self.generator.denoiser.named_modules())
        denoiser = self.generator.denoiser
        hooks = [denoiser.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name in {name for _, name in self.directions}:
            hooks.append(modules[name].register_forward_hook(self._hook(name, modules[name])))
        self._calls = 0
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, _denoiser: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._calls += 1
        if self.generator.family.joint:
            self._grid = replace(self._grid, text=kwargs["encoder_hidden_states"].shape[1])

    def _hook(self, name: str, module: nn.Module) -> Any:
        item = image_item(self.generator.family, module)
        guidance = self.generator.guidance

        def edit(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            step, call = divmod(self._calls - 1, guidance.calls)
            direction = self.directions.get((step + 1, name))
            if direction is None or call > 0:  # of two calls the first is the conditional one
                return None
            return change_grid(
                output,
                self._grid,
                item,
                guidance.halves,
                lambda tokens: self.change(step + 1, name, direction, tokens),
            )

        return edit


@torch.no_grad()
def generate_edited(
    generator: Generator, samples: list[Sample], editor: Editor | None
) -> np.ndarray:
    """Finished images (sample, y, x, rgb) uint8 of samples, edited on the way."""
    pipeline, study = generator.pipeline, generator.study
    torch.set_num_threads(study.sampling.threads)
    negative = study.prompts.negative
    arguments = generator.family.arguments(
        generator.scale, None if negative is None else [negative] * len(samples)
    )
    call = {
        "prompt": [sample.prompt for sample in samples],
        "num_inference_steps": study.sampling.steps,
        "generator": [torch.Generator().manual_seed(sample.seed) for sample in samples],
        "output_type": "latent",
        **arguments,
    }
    if editor is None:
        latents = pipeline(**call).images
    else:
        with editor():
            latents = pipeline(**call).images
    return generator.decode(latents)


def directions_of(
    run: Run, what: Intervention, plan: Plan, labels: LabelSet, shuffled: bool = False
) -> dict[tuple[int, str], Direction]:
    """The direction of every edited cell.

    Args:
        shuffled: of probes trained on labels dealt to other images (the control), fitted here.
    """
    found = {}
    study = run.study()
    place = {"property": what.prop, "kind": plan.kind}
    for layer in plan.layers:
        probes = run.open(f"probes/{layer}", whole=True).sel(place).load()
        for step in range(1, plan.steps + 1):
            tokens = run.read(f"activations/{layer}", "activation", step=step - 1)
            sums = sums_of(run, "real", step, layer)
            if shuffled:
                deals = deals_of(study, "real") if sums else ("shuffled",)
                fitted = probe_activations(tokens, labels, study, deals, sums)
                probe: Any = fitted["shuffled"].probes[plan.kind, what.prop]
            else:
                here = probes.sel(step=step)
                weight = here.weight.values.astype(np.float64)
                probe = Probe(weight, float(here.bias), float(here.penalty))
            covariance = None
            if what.method == "exact" and what.metric == "covariance":
                covariance = (sums or training_moments(tokens, labels)).covariance
            try:
                found[step, layer] = Direction.of(probe, covariance)
            except ValueError as error:
                raise UserError(f"{layer} at step {step} cannot be edited: {error}") from error
    return found


def training_moments(tokens: np.ndarray, labels: LabelSet) -> Moments:
    """Sums over the training samples that are finite, of tokens (sample, y, x, channel) alone."""
    trained = tokens[labels.train]
    finite = np.isfinite(trained).reshape(len(trained), -1).all(1)
    rows = trained[finite].reshape(-1, tokens.shape[-1])
    return Moments.of(rows, np.empty((len(rows), 0)))


def change_towards(
    what: Intervention, kind: str, targets: np.ndarray, random: torch.Generator | None
) -> Any:
    """How tokens of a cell are changed.

    Args:
        targets: (n, Y, X) maps aimed at, at the image's size.
        random: makes the change a random one of the same norm.
    """
    foreground = what.prop == "foreground"
    maps = targets.astype(np.float64)
    whole = torch.from_numpy(maps).float()
    readings: dict[tuple[int, int], Tensor] = {}

    def change(_step: int, _layer: str, direction: Direction, tokens: Tensor) -> Tensor:
        grid = (tokens.shape[1], tokens.shape[2])
        direction = Direction(
            direction.weight.to(tokens.device), direction.bias, direction.along.to(tokens.device)
        )
        if what.method == "adam":
            edited = by_adam(
                tokens, whole.to(tokens.device), direction, foreground,
                what.iterations, what.learning_rate,
            )  # fmt: skip
        else:
            if grid not in readings:
                share = block_means(maps, grid)
                readings[grid] = torch.from_numpy(
                    reading_of(share, kind, foreground, what.confidence)
                ).float()
            edited = direction.exact(tokens, readings[grid].to(tokens.device), what.strength)
        if random is None:
            return edited
        return tokens + random_like(edited - tokens, random)

    return change


def aims_of(labels: np.ndarray, targets: tuple[Target, ...]) -> np.ndarray:
    """Maps aimed at, (target, sample, y, x), of the samples' own labels (sample, y, x)."""
    return np.stack([np.stack([aim(own, target) for own in labels]) for target in targets])


def scores_of(prop: str, maps: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Scores (metric, sample) of labelers' maps against those aimed at."""
    if prop == "foreground":
        return dice(maps, wanted)[None]
    return np.stack([spearman(maps, wanted), rmse(maps, wanted)])


def change_outside(
    before: np.ndarray, after: np.ndarray, own: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Mean absolute change of pixels (sample,), in 0..1, where neither mask is; NaN where none is.

    Args:
        before, after: images (sample, y, x, rgb) uint8.
        own, wanted: masks (sample, y, x): where the object was, and where it is aimed.
    """
    gap = np.abs(before.astype(np.float64) - after).mean(-1) / 255
    outside = ~(own | wanted)
    number = outside.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return np.where(number > 0, (gap * outside).sum((1, 2)) / number, np.nan)
