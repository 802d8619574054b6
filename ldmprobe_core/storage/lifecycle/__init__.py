"""Retention of finished runs: which runs of a store, and which of their files, are kept."""
