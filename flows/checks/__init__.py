"""Checks of the environment before a flow starts: Prefect and memory."""
