"""Thin Prefect tasks, one for each unit of `ldmprobe_core.pipeline`; no science."""
