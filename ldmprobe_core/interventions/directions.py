"""Directions along which an intervention edits the activations of each layer and step."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.edit import EditDirection, Moments
from ldmprobe_core.interventions.null_directions import DIRECTIONS, NULLS, NullContext
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import ERASURES, Intervention
from ldmprobe_core.pipeline.labels import cached_label_set
from ldmprobe_core.pipeline.statistics import unstored_statistics
from ldmprobe_core.probing.cell import CellResult, probe_activations
from ldmprobe_core.probing.fitters.base import CellData, FitData
from ldmprobe_core.probing.fitters.registry import FITTERS
from ldmprobe_core.probing.fitters.ridge import RidgePath
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.probing.linear import LinearProbe, finite_samples
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.batching import summed_columns
from ldmprobe_core.study.conditions import LabelColumn
from ldmprobe_core.study.layers import LATENTS
from ldmprobe_core.study.probe_kinds import probe_kind


@lru_cache(maxsize=1024)
def direction_of(
    url: str, identity: str, spec: Intervention, step: int, layer: str
) -> EditDirection:
    """Compute the edit direction at one layer and step; cached for all batches.

    Args:
        url: URL or path of the run whose probes give the directions.
        identity: identity of the run.  It is a cache key only, so that the directions are computed
            again if another run has been created at the same URL.
        spec: settings of the intervention.
        step: sampler step, from 1.
        layer: name of a layer, or ``latents``.

    Raises:
        UserError: the cell cannot be edited, because the weights of its probe are zero, a direction
            is not finite, or no direction is orthogonal to its probes.
    """
    run = Run(url)
    labels = cached_label_set(url, identity)
    kind = plan_intervention(run, spec).kind
    tokens = run.read(f"activations/{layer}", "activation", step=step - 1)
    statistics = unstored_statistics(run, "trained", step, layer)
    path, column = label_regression(run, spec.prop, tokens, labels, statistics)
    moments = Moments(path.mean_x, path.covariance)
    if spec.method not in ERASURES:
        probes = probes_of_cell(run, identity, spec, step, layer)
        probes.insert(0, probes.pop(probe_kinds_of(run, spec).index(kind)))
    else:
        # Only the orthogonal null edit uses the run's own probes, and those of latents take a fit.
        needs_probes = "orthogonal" in spec.conditions
        probes = probes_of_cell(run, identity, spec, step, layer) if needs_probes else []
        probes.insert(0, _erasing_probe(spec, path, column))
    context = NullContext(
        moments,
        np.stack([probe.weight for probe in probes]),
        lambda: _permuted_directions(run, spec, kind, tokens, labels, moments, statistics),
        _generator(spec, layer),
    )
    metric = "covariance" if spec.method == "leace" else spec.metric
    metric = "l2" if spec.method == "mean_projection" else metric
    try:
        directions = {
            name: null.directions(context)
            for name in spec.conditions
            if (null := NULLS.get(name)) is not None and null.directions is not None
        }
        return EditDirection.of_probe(probes[0], moments, metric, directions)
    except ValueError as error:
        raise UserError(
            f"layers: {layer} cannot be edited at step {step} ({error}). Fix: leave this layer out "
            "of layers, or choose steps without this one."
        ) from error


def _generator(spec: Intervention, layer: str) -> np.random.Generator:
    """Build the random generator of a layer's null edits, with one seed for all steps."""
    digest = hashlib.sha256(f"{spec.seed} {layer}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def probe_kinds_of(run: Run, spec: Intervention) -> list[str]:
    """List the kinds of linear probes of the property that the run stores."""
    prop = spec.edited_property
    return [kind for kind in run.study.linear_kinds if probe_kind(kind).supports(prop)]


@lru_cache(maxsize=64)
def single_latent_probes(url: str, identity: str, prop: str, step: int) -> CellResult:
    """Fit probes of a property to single latent pixels at one step, and cache the result.

    The stored probes of latents read 5 x 5 of them, which an edit of one latent cannot use.

    Args:
        url: URL or path of the run.
        identity: identity of the run, which is a cache key only.
        prop: name of the property.
        step: sampler step, from 1.

    Returns:
        probes, and their scores on the held-out samples.
    """
    run = Run(url)
    tokens = run.read(f"activations/{LATENTS}", "activation", step=step - 1)
    # PyTorch's gradients are off during generation, but fitting some kinds of probes needs
    # them.
    with torch.enable_grad():
        labels = cached_label_set(url, identity)
        return probe_activations(tokens, labels, run.study, (LabelColumn("true", prop),))["true"]


def probes_of_cell(
    run: Run, identity: str, spec: Intervention, step: int, layer: str
) -> list[LinearProbe]:
    """Return the linear probes of a property at one layer and step, one probe of each kind."""
    if layer == LATENTS:
        probes = single_latent_probes(run.url, identity, spec.prop, step).probes
        return [_linear(probes[kind, spec.prop]) for kind in probe_kinds_of(run, spec)]
    stored = run.open(f"probes/{layer}", require_complete=True)
    cell = stored.sel(property=spec.prop, step=step).load()
    return [LinearProbe.from_dataset(cell.sel(kind=kind)) for kind in probe_kinds_of(run, spec)]


def _linear(probe: object) -> LinearProbe:
    """Check that a probe is linear, and return it."""
    if not isinstance(probe, LinearProbe):
        raise TypeError(
            f"probe: it is not linear ({type(probe).__name__}). Fix: choose a linear kind of probe."
        )
    return probe


def permutations(run: Run, kind: str) -> int:
    """Return the number of permutations of the labels in the null edit ``permuted``.

    Each is one more fit, and kinds of probes whose fit takes long are fitted to one.  A run that
    stores sums of its training samples has those of its study (``controls.permutations``).
    """
    if probe_kind(kind).by_epochs:
        return 1
    stores_sums = run.study.capture.keep == "statistics"
    return min(DIRECTIONS, run.study.controls.permutations) if stores_sums else DIRECTIONS


def _permuted_directions(
    run: Run,
    spec: Intervention,
    kind: str,
    tokens: np.ndarray,
    labels: LabelSet,
    moments: Moments,
    statistics: SufficientStatistics | None,
) -> np.ndarray:
    """Compute the edit directions of probes fitted to labels of other images, (draw, channel).

    The run does not store probes of shuffled labels, so they are fitted here, one for each draw of
    the shuffled labels (see `permutations`); the intervention's seed gives the draws of a run that
    stores no sums.
    """
    count = permutations(run, kind)
    first = spec.seed * DIRECTIONS
    columns = tuple(LabelColumn("shuffled", spec.prop, first + draw) for draw in range(count))
    if statistics:
        columns = summed_columns(run.study, "trained")
    fitter = FITTERS[kind]
    data = _cell_data(run, tokens, labels, columns, statistics)
    probes = [
        _linear(fitter.fit(FitData(data, index, fitter.kind)))
        for index, column in enumerate(columns)
        if (column.assignment, column.prop) == ("shuffled", spec.prop)
    ]
    weights = np.stack([probe.weight for probe in probes[:count]])
    return weights if spec.metric == "l2" else weights @ moments.covariance


def _erasing_probe(spec: Intervention, path: RidgePath, column: int | None) -> LinearProbe:
    """Compute the linear probe whose prediction an erasure makes the same for all activations.

    Let c be the covariance of activation and label, the label taken less its mean map, and C the
    covariance of the activations.  LEACE (Belrose et al. 2023) subtracts from an activation h its
    oblique projection c w' (h - mean), with w = C^-1 c / (c' C^-1 c).  This is the edit of least
    norm in the norm of C^-1 after which w' h has its mean value.  Mean projection uses w = c.
    What the activations tell of the mean map stays: a probe with a position term does not need it.

    Args:
        spec: settings of the intervention.
        path: regression of the labels on the activations.
        column: index of the property's label in the regression; None if it is not in it.

    Raises:
        UserError: the property's labels are not measured at every pixel.
    """
    if column is None:
        raise UserError(
            f"method: {spec.method} needs labels that are measured at every pixel, and those of "
            f"{spec.prop} are not. Fix: choose another method."
        )
    weight = path.cross[:, column]
    if spec.method == "leace":
        weight = np.linalg.lstsq(path.covariance, weight, rcond=None)[0]
    return LinearProbe(weight, 0.0, 0.0)


def label_regression(
    run: Run,
    prop: str,
    tokens: np.ndarray,
    labels: LabelSet,
    statistics: SufficientStatistics | None = None,
) -> tuple[RidgePath, int | None]:
    """Compute mean and covariance of training activations, and their covariance with the labels.

    Samples with non-finite activations are not used.

    Args:
        run: run of the cell.
        prop: name of the property whose labels are regressed on the activations, each less its
            training mean at the token's position.
        tokens: activations (sample, y, x, channel) of all stored samples.
        labels: labels of these samples.
        statistics: sums over the training samples, for a run that stores no training activations.

    Returns:
        the regression, and the index of the property's label in it; None if the labels are not
        measured at every pixel.
    """
    own = LabelColumn("true", prop)
    columns = summed_columns(run.study, "trained") if statistics else (own,)
    data = _cell_data(run, tokens, labels, columns, statistics)
    measured = [columns[column] for column in data.complete_columns]
    path = data.ridge_path(position_term=bool(measured))
    return path, measured.index(own) if own in measured else None


def _cell_data(
    run: Run,
    tokens: np.ndarray,
    labels: LabelSet,
    columns: tuple[LabelColumn, ...],
    statistics: SufficientStatistics | None,
) -> CellData:
    """Collect what probes of a cell are fitted to, without samples with non-finite activations."""
    finite = finite_samples(tokens)
    return CellData(
        tokens, labels, labels.train[finite[labels.train]],
        labels.validation[finite[labels.validation]], columns,
        run.study.probes.penalties, run.study.prompts.seed, statistics,
    )  # fmt: skip
