"""Storage of one run in a folder or bucket: Zarr schema, checksums, lease and progress."""
