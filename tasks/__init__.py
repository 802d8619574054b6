"""Prefect tasks, most of which carry out one unit of work of `ldmprobe_core.pipeline`."""
