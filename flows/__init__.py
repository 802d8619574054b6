"""Prefect flows of a study, a classification and an intervention, and the ``ldmprobe`` command."""
