"""Threads and processes of one machine that share the work of a run."""
