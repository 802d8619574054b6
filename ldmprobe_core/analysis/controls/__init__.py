"""Scores of controls and of image labelers, which a run's summary compares with the probes."""
