"""Interventions on a small run, carried out in this process."""

from ldmprobe_core.interventions.directions import direction_of
from ldmprobe_core.interventions.measures.summarize import summarise_intervention
from ldmprobe_core.interventions.stages import create_intervention, edit_batch, edit_units
from ldmprobe_core.pipeline import model_cache


def carry_out_intervention(run, spec):
    """Create an intervention, edit every batch, and return its summary."""
    name = create_intervention(run, spec)
    for unit in edit_units(run, name):
        edit_batch(run.url, name, *unit)
    return summarise_intervention(run, name, 1.0)


def loaded_sampler(run):
    """Sampler of the run's model, from the process's cache."""
    return model_cache.get_sampler(run.study, run.attributes["model_fingerprint"])


def direction_in(run, spec, step, layer):
    """Edit direction of one cell of a run."""
    identity = run.location.read_text("identity")
    return direction_of(run.url, identity, spec, step, layer)
