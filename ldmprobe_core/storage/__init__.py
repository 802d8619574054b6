"""One run: a folder or bucket, its Zarr schema, checksums, lease and progress."""
