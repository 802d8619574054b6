"""Cached metadata of a run."""

import zarr


def test_metadata_cache_follows_changes_of_groups_and_attributes(run):
    """What is remembered of a run's layout is forgotten when this process changes it."""
    root = zarr.open_group(run.store, mode="r+", use_consolidated=False)
    assert "extra" not in dict(root["labels"].members())
    zarr.create_group(run.store, path="labels/extra", zarr_format=3)
    assert "extra" in dict(
        zarr.open_group(run.store, mode="r", use_consolidated=False)["labels"].members()
    )
    root["labels/extra"].attrs["a"] = 1
    assert (
        zarr.open_group(run.store, path="labels/extra", mode="r", use_consolidated=False).attrs["a"]
        == 1
    )
    del root["labels/extra"]
    assert "extra" not in zarr.open_group(run.store, mode="r", use_consolidated=False)["labels"]
    assert "extra" not in dict(
        zarr.open_group(run.store, mode="r", use_consolidated=False)["labels"].members()
    )
