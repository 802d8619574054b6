"""Records of the main results of interventions in a run's ``summary.json``.

The command line imports this module, so it must not import torch.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from ldmprobe_core.probing.inference.bootstrap import Interval


class MapCell(BaseModel):
    """Cell of a causal map: probe score and edit effect for one layer and one window of steps.

    Attributes:
        layer: name of the edited layer; ``latents`` stands for the denoiser's input.
        first, last: first and last edited step, from 1.
        dose: amplitude of the target in standard deviations of the prediction; None for a target in
            its own units.
        decodable: score of the run's probes, see
            `ldmprobe_core.interventions.results.SiteRecord`.
        used: effect of the edit, likewise.
    """

    layer: str
    first: int
    last: int
    dose: float | None
    decodable: Interval | None
    used: Interval


class DoseEffect(BaseModel):
    """Effect of an intervention at one of its doses.

    Attributes:
        dose: amplitude of the target in standard deviations of the prediction.
        edited: score of the edited images.
        used: effect of the edit, see `ldmprobe_core.interventions.results.SiteRecord`.
    """

    dose: float
    edited: Interval
    used: Interval


class InterventionRecord(BaseModel):
    """Main results of one intervention in the run's ``summary.json``.

    Attributes:
        prop: name of the edited property.
        method: method of the edit.
        metric: metric of the agreement with the target.
        pairs: number of pairs of sample and target.
        unedited: score of the unedited images against the targets.
        edited: score of the edited images; None if there are several sites or doses.
        used: effect of the edit, see `ldmprobe_core.interventions.results.SiteRecord`; likewise.
        doses: effects by dose, if there are several; else empty.
        map: cells of a causal map; empty for other interventions.
    """

    prop: str
    method: str
    metric: str
    pairs: int
    unedited: Interval
    edited: Interval | None
    used: Interval | None
    doses: list[DoseEffect] = Field(default_factory=list)
    map: list[MapCell]
