"""Plan of a run, made before its first batch: cells, bytes, and what cannot work."""
