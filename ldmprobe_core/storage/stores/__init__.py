"""Zarr stores of a run, with an object store client, checksums and cached metadata."""
