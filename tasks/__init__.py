"""Thin Prefect tasks, one a verb of `ldmprobe_core.stages`: names, retries, keys, no science."""
