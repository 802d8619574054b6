"""A kind of probe."""

import numpy as np

from ldmprobe_core.probing.fitters.registry import register_fitter
from ldmprobe_core.probing.linear import LinearProbe
from ldmprobe_core.study.probe_kinds import ProbeKind


class LeastSquaresFitter:
    """Fitter of linear probes by least squares without a penalty."""

    kind = ProbeKind(name="least_squares", title="least squares", mask_output="share")

    def fit(self, data):
        """Fit the probe of one label."""
        rows = np.column_stack([data.x.astype(float), np.ones(len(data.x))])
        solution = np.linalg.lstsq(rows, data.y, rcond=None)[0]
        return LinearProbe(solution[:-1], float(solution[-1]), float("nan"))


register_fitter(LeastSquaresFitter())
