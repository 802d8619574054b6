"""Zarr stores of a run: object store client, checksums, cached metadata."""
