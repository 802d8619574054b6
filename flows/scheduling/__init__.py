"""Scheduled runs of the study flow: rolling seed, retention and history."""
