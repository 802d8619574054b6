"""Prefect tasks, thin wrappers of the units of `ldmprobe_core.pipeline`."""
