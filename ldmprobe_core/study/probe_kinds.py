"""Registry of the kinds of probes that a study may name.

`ldmprobe_core.probing.fitters` holds the functions that fit them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldmprobe_core.study.properties import Property


@dataclass(frozen=True, kw_only=True)
class ProbeKind:
    """Description of a kind of probe, such as ridge regression.

    Attributes:
        name: name in ``probes.kinds`` of a study.
        title: name of the kind in text.
        linear: whether a probe consists of one weight per channel and a bias, which are stored.
            Other kinds are controls, which are scored but never chosen as the best probe.
        position_term: whether predictions contain the training mean of the label at the token's
            position, so that the weights need not encode position.
        from_statistics: whether probes can be fitted from sufficient statistics alone.
        property_kinds: kinds of properties that probes can predict; None stands for all.
        mask_output: prediction for a mask, either the ``share`` of foreground in the block of
            pixels that a token covers, or the ``logit`` of that share.
        fixed_cut: value above which the prediction of a mask counts as foreground, for kinds that
            repeat a published protocol; None chooses the cut with the best Dice on the training
            samples (`ldmprobe_core.probing.detection.best_cut`).
        by_epochs: whether a fit is a fixed number of passes over all tokens, each in many small
            updates.  It then takes minutes for a layer of Stable Diffusion 1.4, so interventions
            fit it to one permutation of the labels instead of many.
    """

    name: str
    title: str
    linear: bool = True
    position_term: bool = False
    from_statistics: bool = False
    property_kinds: tuple[str, ...] | None = None
    mask_output: Literal["share", "logit"] = "logit"
    fixed_cut: float | None = None
    by_epochs: bool = False

    def supports(self, prop: Property) -> bool:
        """Return whether probes of this kind can predict a property."""
        return self.property_kinds is None or prop.kind in self.property_kinds


PROBE_KINDS: dict[str, ProbeKind] = {}
"""Registered kinds of probes by name, in the order in which they are fitted."""


def register_probe_kind(kind: ProbeKind) -> ProbeKind:
    """Register a kind of probe but no fitter; `register_fitter` registers the kind with its fitter.

    Raises:
        ValueError: the name is taken.
    """
    if kind.name in PROBE_KINDS:
        raise ValueError(f"probe kind {kind.name!r}: the name is taken. Fix: choose another.")
    PROBE_KINDS[kind.name] = kind
    return kind


def probe_kind(name: str) -> ProbeKind:
    """Return the description of a registered kind of probe.

    Raises:
        KeyError: no kind of this name is registered.
    """
    try:
        return PROBE_KINDS[name]
    except KeyError:
        raise KeyError(
            f"probe kind {name!r} is not registered. Fix: use one of {', '.join(PROBE_KINDS)}"
        ) from None


RIDGE = register_probe_kind(
    ProbeKind(
        name="ridge", title="ridge", position_term=True, from_statistics=True, mask_output="share"
    )
)
LOGISTIC = register_probe_kind(
    ProbeKind(name="logistic", title="logistic", position_term=True, property_kinds=("mask",))
)
PLAIN_RIDGE = register_probe_kind(
    ProbeKind(
        name="plain_ridge",
        title="ridge without a position term",
        from_statistics=True,
        mask_output="share",
    )
)
PLAIN_LOGISTIC = register_probe_kind(
    ProbeKind(
        name="plain_logistic",
        title="logistic without a position term",
        property_kinds=("mask",),
        fixed_cut=0.0,
    )
)
ADAM = register_probe_kind(ProbeKind(name="adam", title="adam", fixed_cut=0.0, by_epochs=True))
MLP = register_probe_kind(
    ProbeKind(name="mlp", title="a two-layer probe", linear=False, fixed_cut=0.0, by_epochs=True)
)

BUILT_IN_KINDS = frozenset(PROBE_KINDS)
"""Names of the kinds of probes that this package fits itself."""
