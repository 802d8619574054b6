"""Checks of the environment before a flow starts: HTTP proxies, Prefect and memory."""
