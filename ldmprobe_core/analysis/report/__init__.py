"""The report of a run: one folder, no network."""
