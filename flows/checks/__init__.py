"""Checks of the environment that come before any work: proxies, Prefect, memory."""
