"""Stages of a study: planning, creation of the run, and the computation of its units of work."""
