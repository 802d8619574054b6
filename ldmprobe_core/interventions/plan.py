"""Checks that a run has all that an intervention needs, before any model is loaded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ldmprobe_core.errors import UserError, counted
from ldmprobe_core.interventions.spec import (
    DEFAULT_CONFIDENCE,
    DONOR,
    ERASURES,
    PROBE_EDITS,
    Intervention,
    predicts_for_descent,
)
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.units import PROBE
from ldmprobe_core.study.layers import LATENTS, POINT, VAE, is_attention_map, matching_layers
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.properties import property_of


@dataclass(frozen=True)
class Site:
    """Layers and steps that are edited together.

    Attributes:
        layers: names of the layers; ``latents`` stands for the denoiser's input.
        first, last: first and last edited step, from 1.
    """

    layers: tuple[str, ...]
    first: int
    last: int

    def __str__(self) -> str:
        """Return a short name, such as ``3 layers, steps 1-8``."""
        layers = self.layers[0] if len(self.layers) == 1 else f"{len(self.layers)} layers"
        return f"{layers}, steps {self.first}-{self.last}"

    @property
    def cells(self) -> list[tuple[int, str]]:
        """Edited cells, as pairs of a step (from 1) and a layer."""
        return [(s, layer) for s in range(self.first, self.last + 1) for layer in self.layers]


@dataclass(frozen=True)
class InterventionPlan:
    """Samples, layers, steps and probe kind of a checked intervention, with defaults filled in.

    Attributes:
        samples: indices of the edited samples.
        donors: for each of these samples, the index of the sample that gives its activations;
            empty unless the method is ``donor``.
        sites: layers and steps that are edited together; a causal map has one site for each pair
            of layer and window, all windows of a layer in a row.
        kind: kind of the probes that give the edit directions.
    """

    samples: list[int]
    donors: list[int]
    sites: list[Site]
    kind: str


def plan_intervention(run: Run, spec: Intervention) -> InterventionPlan:
    """Check that a run has the probes, samples and layers of an intervention; fill in defaults.

    Raises:
        UserError: the run lacks the probes, samples or layers that the intervention needs, or the
            property cannot be edited.
    """
    study = run.study  # Registers the study's own properties and kinds of probes.
    if study.source == "images":
        raise UserError(
            f"prompts: {run.url} has source images and no prompts, so there is no generation to "
            "edit. Fix: use a run whose study has prompts."
        )
    if study.capture.pool is not None:
        raise UserError(
            f"capture.pool: {run.url} stores means of blocks of tokens, but edits need probes of "
            f"single tokens ({study.capture.pool.by} x {study.capture.pool.by}). Fix: use a run "
            "whose study has no capture.pool."
        )
    editable = [name for name in study.labels.maps if property_of(name).intervention is not None]
    if spec.prop not in editable:
        known = f"set it to one of {', '.join(editable)}" if editable else "use another run"
        raise UserError(
            f"prop: {run.url} has no property of this name that can be edited ({spec.prop!r}). "
            f"Fix: {known}."
        )
    permuted = "permuted" in spec.conditions and study.capture.keep == "statistics"
    if permuted and not study.controls.shuffled_labels:
        raise UserError(
            f"controls: {run.url} has no statistics of shuffled labels, which the null edit "
            "'permuted' needs. Its study sets controls.shuffled_labels to false. Fix: leave "
            "'permuted' out of the intervention's controls."
        )
    sites = _sites(run, spec)
    cells = {cell for site in sites for cell in site.cells}
    if spec.method in ERASURES:
        cells |= {(step, layer) for step, _ in cells for layer in read_layers(run)}
    _require_probes(run, cells)
    _require_orthogonal_direction(run, spec, sites)
    kind, samples = _kind(run, spec), _samples(run, spec)
    donors = _donors(run, samples) if spec.method == DONOR else []
    return InterventionPlan(samples, donors, sites, kind)


def windows_of(steps: int, windows: int) -> list[tuple[int, int]]:
    """Divide sampler steps into windows whose lengths differ by at most 1.

    Args:
        steps: number of sampler steps.
        windows: number of windows, at most the number of steps.

    Returns:
        first and last step of each window, from 1.
    """
    edges = [round(i * steps / windows) for i in range(windows + 1)]
    return [(a + 1, b) for a, b in itertools.pairwise(edges)]


def _sites(run: Run, spec: Intervention) -> list[Site]:
    """List the groups of layers and steps that are edited together.

    Raises:
        UserError: no layer matches, or the run has fewer steps than the intervention edits.
    """
    total = len(run.progress.completed(PROBE))
    layers = _layers(run, spec)
    if spec.windows is not None:
        if spec.windows > total:
            raise UserError(
                f"windows: more than the run's {total} sampler steps ({spec.windows}). Fix: set "
                f"it to {total} or less."
            )
        windows = windows_of(total, spec.windows)
        return [Site((layer,), *window) for layer in layers for window in windows]
    steps = spec.steps or min(-(-total // 2), total - spec.start + 1)
    last = spec.start + steps - 1
    if steps < 1 or last > total:
        name = "start" if spec.start > total else "steps"
        edited = f"{spec.start} to {last}" if steps > 0 else str(spec.start)
        raise UserError(
            f"{name}: more than the run's {total} sampler steps ({edited}). Fix: edit steps "
            f"between 1 and {total}."
        )
    return [Site(tuple(layers), spec.start, last)]


def _layers(run: Run, spec: Intervention) -> list[str]:
    """List the edited layers, beginning with the latents (the denoiser's input) if selected."""
    # Latents can be edited only if they are stored.  Stored sums are not enough: they are sums
    # over neighbourhoods of tokens, but an edit needs the statistics of single tokens.
    latents = LATENTS in run.probe_inputs and run.study.capture.keep != "statistics"
    for glob in spec.layers or ():
        if glob == LATENTS and not latents:
            raise UserError(
                f"layers: {run.url} has no latents of training samples, because its study sets "
                "controls.latents to false or capture.keep to statistics (latents). Fix: leave "
                "latents out of layers."
            )
        if glob != LATENTS and not matching_layers(run.layers, glob):
            raise UserError(_no_layers_match(run, glob))
        if is_attention_map(glob):
            raise UserError(
                "layers: attention maps cannot be edited, because the captured maps are copies, "
                f"which the denoiser does not use ({glob}). Fix: edit {POINT}query of the same "
                "layer, if the run has it."
            )
    globs = ("*",) if spec.layers is None else spec.layers
    chosen = {name for glob in globs for name in matching_layers(run.layers, glob)}
    layers = [
        name
        for name in run.layers
        if name in chosen and not name.startswith(VAE) and not is_attention_map(name)
    ]
    # The latents (the denoiser's input) are edited only if they are named, or in a causal map of
    # all layers, which shows the latents as a further row.
    if LATENTS in globs or (spec.windows and spec.layers is None and latents):
        layers = [LATENTS, *layers]
    if not layers:
        raise UserError(_no_layers_match(run, ", ".join(globs)))
    return layers


def _no_layers_match(run: Run, globs: str) -> str:
    """Return the error text for globs that match no layer of a run."""
    points = ", and points inside layers are edited only where a glob has @"
    apart = points if any(POINT in name for name in run.layers) else ""
    return (
        f"layers: no layer of the run matches{apart} ({globs}). Fix: choose from "
        f"{', '.join(run.layers)}."
    )


def read_layers(run: Run) -> list[str]:
    """List the denoiser's captured layers, on which probes are scored during an erasure."""
    return [layer for layer in run.layers if not layer.startswith(VAE)]


def _require_probes(run: Run, cells: set[tuple[int, str]]) -> None:
    """Check that the run has probes of all given pairs of step and layer.

    Raises:
        UserError: a cell has no probes yet.
    """
    completed = run.progress.completed(PROBE)
    for step, layer in sorted(cells):
        if not completed[step - 1, run.probe_inputs.index(layer)]:
            raise UserError(
                f"probes: {run.url} has no probes of layer {layer} at step {step}. Fix: finish the "
                "run, then repeat the intervention."
            )


def require_varying_predictions(run: Run, spec: Intervention, plan: InterventionPlan) -> None:
    """Check that the predictions of each probe that an edit uses vary between tokens.

    The dose of an edit is in standard deviations of the prediction, so an edit of a constant
    prediction has no size.  The predictions are those for two of the edited samples, which are read
    from the run; latents always vary.

    Raises:
        UserError: a probe predicts one value for all tokens, apart from its position term.
    """
    if spec.method not in PROBE_EDITS:
        return
    steps: dict[str, set[int]] = {}
    for step, layer in (cell for site in plan.sites for cell in site.cells if cell[1] != LATENTS):
        steps.setdefault(layer, set()).add(step)
    for layer in steps:
        stored = run.open(f"probes/{layer}", require_complete=True).weight
        weights = stored.sel(kind=plan.kind, property=spec.prop).load()
        for step in sorted(steps[layer]):
            tokens = run.read(
                f"activations/{layer}", "activation", step=step - 1, sample=plan.samples[:2]
            ).astype(np.float64)
            weight = weights.sel(step=step).values.astype(np.float64)
            with np.errstate(all="ignore"):  # Hide warnings about infinite activations.
                scale = np.linalg.norm(weight) * np.sqrt(np.square(tokens).sum(-1).mean())
                constant = (tokens @ weight).std() <= 1e-9 * scale
            if constant:
                raise UserError(
                    f"layers: {layer} cannot be edited at step {step}, because its {plan.kind} "
                    f"probe of {spec.prop} predicts the same for every token (deviation 0). Fix: "
                    "leave this layer out of layers, or choose steps without this one."
                )


def _require_orthogonal_direction(run: Run, spec: Intervention, sites: list[Site]) -> None:
    """Check that latents have enough channels for a direction orthogonal to all probes.

    Latents have few channels, layers have more channels than there are kinds of probes.  An erasure
    has one more probe, whose prediction it removes.

    Raises:
        UserError: latents do not have more channels than there are probes of the property.
    """
    latents = any(LATENTS in site.layers for site in sites)
    if not latents or "orthogonal" not in spec.conditions:
        return
    channels = run.open(f"activations/{LATENTS}").sizes["channel"]
    kinds = [n for n in run.study.linear_kinds if probe_kind(n).supports(spec.edited_property)]
    erasing = spec.method in ERASURES
    if len(kinds) + erasing >= channels:
        raise UserError(
            f"controls: {len(kinds)} kinds of probes{' and the erased one' if erasing else ''} "
            f"read all {channels} channels of the latents, so no direction is orthogonal to them "
            "(orthogonal). Fix: leave orthogonal out of controls, or latents out of layers."
        )


def _kind(run: Run, spec: Intervention) -> str:
    """Return the kind of the probes from which the edit directions are computed.

    Raises:
        UserError: the run has no probes of this kind for the property, or the method or confidence
            does not apply to the kind.
    """
    prop, kinds = property_of(spec.prop), run.study.linear_kinds
    usable = [name for name in kinds if probe_kind(name).supports(prop)]
    if not usable:
        raise UserError(
            f"kind: {run.url} has no linear probes of {spec.prop} ({', '.join(kinds)}). Fix: add "
            f"{spec.defaults.kind} to probes.kinds of the study, and make a new run."
        )
    kind = spec.kind or _default_kind(spec, usable)
    if kind not in usable:
        raise UserError(
            f"kind: the run has no linear probes of {spec.prop} of this kind ({kind!r}). Fix: set "
            f"it to one of {', '.join(usable)}."
        )
    logits = prop.is_mask and probe_kind(kind).mask_output == "logit"
    if spec.confidence != DEFAULT_CONFIDENCE and not logits:
        raise UserError(
            f"confidence: it applies to probes that predict logits of masks, and {kind} probes of "
            f"{spec.prop} do not ({spec.confidence:g}). Fix: leave confidence out, or set kind to "
            "one that predicts logits."
        )
    if spec.method == "adam" and not predicts_for_descent(probe_kind(kind), prop):
        raise UserError(
            f"method: adam needs mask logits, which probes of kind {kind} do not predict. Fix: set "
            "method to exact."
        )
    return kind


def _default_kind(spec: Intervention, usable: list[str]) -> str:
    """Choose a kind of probe: the property's default, or the first that predicts logits."""
    prop = spec.edited_property
    logits = [name for name in usable if predicts_for_descent(probe_kind(name), prop)]
    if spec.defaults.kind in (logits if spec.method == "adam" else usable):
        return spec.defaults.kind
    return [*logits, *usable][0]


def available_samples(run: Run, spec: Intervention) -> list[int]:
    """List the samples that an intervention may edit: the stored ones of its split."""
    split = run.open("samples").split.values[: run.n_stored]
    return [int(i) for i in np.flatnonzero(split == spec.part)]


def _samples(run: Run, spec: Intervention) -> list[int]:
    """List the samples to edit: the chosen ones, or the first ones of the split."""
    available = available_samples(run, spec)
    if spec.chosen is None:
        if spec.samples > len(available):
            raise UserError(
                f"samples: more than the run's {counted(len(available), f'{spec.part} sample')} "
                f"({spec.samples}). Fix: set it to {len(available)} or less."
            )
        return available[: spec.samples]
    wrong = [i for i in spec.chosen if i not in available]
    if wrong:
        raise UserError(
            f"chosen: sample {wrong[0]} is not a {spec.part} sample of this run. Fix: choose from "
            f"{', '.join(str(i) for i in available[:8])}{', ...' if len(available) > 8 else ''}."
        )
    return list(spec.chosen)


def _donors(run: Run, samples: list[int]) -> list[int]:
    """Choose a donor for each sample: the next stored sample, with the same prompt if possible.

    Raises:
        UserError: the run stores one sample only.
    """
    stored = run.samples[: run.n_stored]
    if len(stored) < 2:
        raise UserError(
            "method: a donor is another sample, and the run stores one sample only (donor). Fix: "
            f"choose one of {', '.join(PROBE_EDITS)}."
        )
    donors = []
    for i in samples:
        others = [(i + k) % len(stored) for k in range(1, len(stored))]
        alike = [j for j in others if stored[j].prompt == stored[i].prompt]
        donors.append((alike or others)[0])
    return donors
