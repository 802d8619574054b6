"""Registry of fitters: one for every kind of probe."""

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
"""Fitters by the name of their kind, in the order in which they are run."""


def register_fitter(fitter: Fitter) -> Fitter:
    """Add a fitter, and its kind if that is new; studies may then name it in ``probes.kinds``.

    Raises:
        ValueError: another fitter, or another kind, has the name.
    """
    name = fitter.kind.name
    if name in FITTERS:
        raise ValueError(f"fitter {name!r}: the name is taken. Fix: choose another.")
    if PROBE_KINDS.get(name) != fitter.kind:
        register_probe_kind(fitter.kind)
    FITTERS[name] = fitter
    return fitter


class RidgeFitter:
    """Ridge probes of all labels of a cell from one factorisation a penalty."""

    kind = RIDGE

    def fit(self, data: FitData) -> LinearProbe:
        """The ridge probe at the penalty with the least validation error."""
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
    """Logistic probes of masks, started from the ridge solution."""

    kind = LOGISTIC

    def fit(self, data: FitData) -> LinearProbe:
        """The logistic probe at the penalty with the least validation cross-entropy."""
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
    """The paper's linear probes, fitted to full-size maps."""

    kind = ADAM

    def fit(self, data: FitData) -> LinearProbe:
        """The probe after the paper's number of epochs."""
        return fit_adam(data.activations, data.full_maps, data.prop.is_mask, data.cell.seed)


class MlpFitter:
    """The paper's probes with one hidden layer, the control of linearity."""

    kind = MLP

    def fit(self, data: FitData) -> MlpProbe:
        """The probe after the paper's number of epochs."""
        return fit_mlp(
            data.activations,
            data.token_maps,
            data.prop.is_mask,
            data.cell.seed,
            weight=data.map_weights,
        )


for _fitter in (RidgeFitter(), LogisticFitter(), AdamFitter(), MlpFitter()):
    register_fitter(_fitter)
