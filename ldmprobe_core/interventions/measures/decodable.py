"""Scores of probes on unedited activations, at the layers and steps of an intervention."""

from __future__ import annotations

import numpy as np

from ldmprobe_core.interventions.directions import single_latent_probes
from ldmprobe_core.interventions.plan import Site
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.pipeline.labels import cached_label_set
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.conditions import PROBE_CONDITION
from ldmprobe_core.study.layers import LATENTS


def score_at_site(run: Run, spec: Intervention, kind: str, site: Site) -> Interval:
    """Average the test scores of the probes of an edited layer over the edited steps.

    The scores are in the property's headline metric.
    """
    layer, steps = site.layers[0], range(site.first, site.last + 1)
    values = stored_scores(run, spec, kind, layer, steps)
    test = [i for i in values if run.samples[i].split == "test"]
    members = [run.samples[i] for i in test]
    bootstrap = Bootstrap.of_samples(members, run.study.bootstrap, seed=0)
    return bootstrap.interval(np.array([values[i] for i in test]))


def stored_scores(
    run: Run, spec: Intervention, kind: str, layer: str, steps: range
) -> dict[int, float]:
    """Average the stored scores of a layer's probes over steps, for each held-out sample.

    For ``latents``, these are probes of single latents, whose scores the run does not store.

    Args:
        run: run that contains the probes.
        spec: settings of the intervention, which give the property and its headline metric.
        kind: kind of the probes.
        layer: name of the layer, or ``latents``.
        steps: steps, from 1.
    """
    if layer == LATENTS:
        return _latent_scores(run, spec, kind, steps)
    scores = run.open(f"scores/{spec.prop}", require_complete=True).score.sel(
        condition=PROBE_CONDITION, kind=kind, metric=spec.defaults.metrics[0], layer=layer
    )
    window = scores.isel(step=slice(steps.start - 1, steps.stop - 1)).load()
    means = window.mean("step", skipna=False).values.astype(float)
    return dict(zip(map(int, window.sample.values), map(float, means), strict=True))


def _latent_scores(run: Run, spec: Intervention, kind: str, steps: range) -> dict[int, float]:
    """Average the scores of probes of single latent pixels over steps, for each held-out sample."""
    identity = run.location.read_text("identity")
    row = run.study.kinds.index(kind), spec.edited_property.metrics.index(spec.defaults.metrics[0])
    scores = [
        single_latent_probes(run.url, identity, spec.prop, step).scores[spec.prop][row]
        for step in steps
    ]
    heldout = cached_label_set(run.url, identity).heldout
    means = np.mean(scores, axis=0, dtype=float)
    return dict(zip(map(int, heldout), map(float, means), strict=True))
