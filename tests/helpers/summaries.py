"""Summaries of made-up numbers, to read the sentences that are written on them."""

from ldmprobe_core.analysis.controls.records import ControlRecord, ControlsRecord, OwnBestRecord
from ldmprobe_core.analysis.curves import RIVALS
from ldmprobe_core.analysis.facts import limits_of, property_facts
from ldmprobe_core.analysis.records import (
    BarRecord,
    CellRecord,
    ClustersRecord,
    CurveRecord,
    EmergenceRecord,
    LayerRecord,
    LeadRecord,
    LeadsRecord,
    PropertyRecord,
    Summary,
    UndefinedRecord,
)
from ldmprobe_core.probing.inference.bootstrap import Interval
from ldmprobe_core.probing.inference.emergence import Crossing, Lead

THIRD = Crossing(step=3, low=2, high=4, determined=True, distribution=[0, 0.2, 0.9, *[1.0] * 12])
WIDE = Crossing(step=3, low=1, high=None, determined=False, distribution=[0.5] * 15)


def interval(mean, half=0.05):
    return Interval(mean=mean, low=mean - half, high=mean + half)


def control(mean, same=0.1):
    """A control that scores `mean` in its own best cell, where the probe's best is 0.6."""
    return ControlRecord(
        same_cell=interval(same),
        own_best=OwnBestRecord(step=2, layer="b", kind="ridge", score=interval(mean)),
        difference=interval(0.6 - mean),
        p=0.01,
    )


def curve(value):
    bar = BarRecord(onset=value, settled=value)
    return CurveRecord(relative=bar, absolute=bar)


def summary(position, shuffled, permuted, onset=THIRD, **more):
    no_leads = LeadRecord(onset=Lead(), settled=Lead())
    name = "a.transformer_blocks.0.attn1"
    best = CellRecord(step=9, layer=name, kind="ridge", metric="spearman", score=interval(0.6))
    controls = ControlsRecord(
        position=control(position),
        shuffled_labels=control(shuffled),
        permuted_weights=permuted and control(permuted),
        **{name: control(mean) for name, mean in more.items()},
    )
    undefined = curve(Crossing())
    result = PropertyRecord(
        best=best,
        last=best.model_copy(deep=True),
        layer=LayerRecord(name=name, kind="ridge", tied=[name]),
        steps=[],
        emergence=EmergenceRecord(
            probe=curve(onset),
            **dict.fromkeys(RIVALS, undefined),
        ),
        leads=LeadsRecord(**dict.fromkeys(RIVALS, no_leads)),
        clusters=ClustersRecord(prompts=20, categories=None, wider="prompts"),
        controls=controls,
        not_beyond=controls.not_exceeded(),
        ceilings={"8x8": 0.9},
        constant=None,
        undefined=UndefinedRecord(best=0, any=0),
    )
    return Summary(
        study="s", study_hash="h", model_fingerprint="f",
        samples={"total": 9, "train": 4, "test": 5}, steps=15, layers=1,
        properties={"depth": result}, classes=None, nonfinite=0, seconds={}, bytes=1, versions={},
    )  # fmt: skip


def overview(made):
    """Facts of a summary's only property, and what limits them, as one text."""
    ((name, result),) = made.properties.items()
    facts = "; ".join(map(str, property_facts(result, made)))
    return f"{facts}. {limits_of(name, result, made)}".strip()
