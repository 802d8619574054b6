"""Registry of fitters, and the fitters of the built-in kinds of probes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ldmprobe_core.probing.fitters.base import FitData, Fitter
from ldmprobe_core.probing.fitters.logistic import SoftLabels, fit_logistic
from ldmprobe_core.probing.fitters.ridge import fit_ridge
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.study.probe_kinds import (
    ADAM,
    LOGISTIC,
    MLP,
    PLAIN_LOGISTIC,
    PLAIN_RIDGE,
    PROBE_KINDS,
    RIDGE,
    ProbeKind,
    register_probe_kind,
)

if TYPE_CHECKING:
    from ldmprobe_core.probing.fitters.mlp import MlpProbe

FITTERS: dict[str, Fitter] = {}
"""Registered fitters by the name of their probe kind, in the order in which they run."""


def register_fitter(fitter: Fitter) -> Fitter:
    """Register a fitter, so that a study may name its probe kind under ``probes.kinds``.

    The probe kind itself is registered too if it is new.

    Raises:
        ValueError: another fitter or another kind has the same name.
    """
    name = fitter.kind.name
    if name in FITTERS:
        raise ValueError(f"fitter {name!r}: the name is taken. Fix: choose another.")
    if PROBE_KINDS.get(name) != fitter.kind:
        register_probe_kind(fitter.kind)
    FITTERS[name] = fitter
    return fitter


class RidgeFitter:
    """Fitter of ridge probes; one matrix factorisation serves all labels of the activations.

    Args:
        kind: record of the kind of probe, with or without a position term.
    """

    def __init__(self, kind: ProbeKind = RIDGE) -> None:
        self.kind = kind

    def fit(self, data: FitData) -> LinearProbe:
        """Fit the ridge probe at the penalty with the least validation error."""
        cell = data.cell
        path, index = data.ridge_path
        validation, _ = data.validation_statistics
        if data.complete:
            probes = cell.shared(
                self.kind.name, lambda: fit_ridge(path, validation, cell.penalties)
            )
        else:
            probes = fit_ridge(path, validation, cell.penalties)
        return replace(probes[index], position=data.position_term)


class LogisticFitter:
    """Fitter of logistic probes of masks; the solver starts from the ridge solution.

    Args:
        kind: record of the kind of probe, with or without a position term.
    """

    def __init__(self, kind: ProbeKind = LOGISTIC) -> None:
        self.kind = kind

    def fit(self, data: FitData) -> LinearProbe:
        """Fit the logistic probe at the penalty with the least validation cross-entropy."""
        train = SoftLabels(data.x, data.y, data.weight, data.token_offsets(data.cell.train))
        validation = SoftLabels(
            data.validation_x,
            data.validation_y,
            data.validation_weight,
            data.token_offsets(data.cell.validation),
        )
        probe = fit_logistic(train, validation, data.cell.penalties, *data.ridge_path)
        return replace(probe, position=data.position_term)


class AdamFitter:
    """Fitter of the linear probes of Chen et al. (2023), which learn from full-size label maps."""

    kind = ADAM

    def fit(self, data: FitData) -> LinearProbe:
        """Fit the linear probe by Adam for 30 epochs, as in Chen et al. (2023)."""
        # Import here, because torch takes seconds to load, and summaries fit other kinds.
        from ldmprobe_core.probing.fitters.adam import fit_adam

        return fit_adam(data.activations, data.full_maps, data.prop.is_mask, data.cell.seed)


class MlpFitter:
    """Fitter of the one-hidden-layer probes of Chen et al. (2023), a nonlinear control."""

    kind = MLP

    def fit(self, data: FitData) -> MlpProbe:
        """Fit the nonlinear probe by Adam for 30 epochs, as in Chen et al. (2023)."""
        # Import here, for the same reason.
        from ldmprobe_core.probing.fitters.mlp import fit_mlp

        return fit_mlp(
            data.activations,
            data.token_maps,
            data.prop.is_mask,
            data.cell.seed,
            weight=data.map_weights,
        )


for _fitter in (
    RidgeFitter(),
    LogisticFitter(),
    RidgeFitter(PLAIN_RIDGE),
    LogisticFitter(PLAIN_LOGISTIC),
    AdamFitter(),
    MlpFitter(),
):
    register_fitter(_fitter)
