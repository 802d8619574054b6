"""Registry of fitters, and the fitters of the four built-in kinds of probes."""

from __future__ import annotations

from ldmprobe_core.probing.fitters.adam import fit_adam
from ldmprobe_core.probing.fitters.base import FitData, Fitter
from ldmprobe_core.probing.fitters.logistic import fit_logistic
from ldmprobe_core.probing.fitters.mlp import MlpProbe, fit_mlp
from ldmprobe_core.probing.fitters.ridge import fit_ridge
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.study.probe_kinds import (
    ADAM,
    LOGISTIC,
    MLP,
    PROBE_KINDS,
    RIDGE,
    register_probe_kind,
)

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
    """Fitter of ridge probes, which shares matrix factorisations between the labels of a cell."""

    kind = RIDGE

    def fit(self, data: FitData) -> LinearProbe:
        """Fit the ridge probe at the penalty with the least validation error."""
        cell = data.cell
        path, index = data.ridge_path
        if data.complete:
            probes = cell.shared(
                self.kind.name, lambda: fit_ridge(path, cell.validation_statistics, cell.penalties)
            )
            return probes[index]
        validation = SufficientStatistics.from_tokens(
            data.validation_x, data.validation_y[:, None], data.validation_weight
        )
        return fit_ridge(path, validation, cell.penalties)[index]


class LogisticFitter:
    """Fitter of logistic probes of masks; the solver starts from the ridge solution."""

    kind = LOGISTIC

    def fit(self, data: FitData) -> LinearProbe:
        """Fit the logistic probe at the penalty with the least validation cross-entropy."""
        return fit_logistic(
            data.x,
            data.y,
            data.validation_x,
            data.validation_y,
            data.cell.penalties,
            *data.ridge_path,
            data.weight,
            data.validation_weight,
        )


class AdamFitter:
    """Fitter of the linear probes of Chen et al. (2023), which learn from full-size label maps."""

    kind = ADAM

    def fit(self, data: FitData) -> LinearProbe:
        """Fit the linear probe by Adam for 30 epochs, as in Chen et al. (2023)."""
        return fit_adam(data.activations, data.full_maps, data.prop.is_mask, data.cell.seed)


class MlpFitter:
    """Fitter of the one-hidden-layer probes of Chen et al. (2023), a nonlinear control."""

    kind = MLP

    def fit(self, data: FitData) -> MlpProbe:
        """Fit the nonlinear probe by Adam for 30 epochs, as in Chen et al. (2023)."""
        return fit_mlp(
            data.activations,
            data.token_maps,
            data.prop.is_mask,
            data.cell.seed,
            weight=data.map_weights,
        )


for _fitter in (RidgeFitter(), LogisticFitter(), AdamFitter(), MlpFitter()):
    register_fitter(_fitter)
