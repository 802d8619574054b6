"""Fitters, one for each kind of probe."""
