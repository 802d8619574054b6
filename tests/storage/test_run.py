"""Reading and writing regions of a run, and opening it with xarray alone."""

import warnings

import numpy as np
import pytest
import xarray as xr

from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.checksum_store import CorruptChunkError

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1"


def test_write_refuses_a_region_that_cuts_a_chunk(run):
    for start, stop in ((0, 2), (2, 6), (1, 5), (4, 12), (4, 4)):
        data = np.zeros((stop - start, 3), np.int32)
        with pytest.raises(
            ValueError, match=f"{start}\\.\\.{stop} of dimension sample .*4 elements each"
        ):
            run.write(f"activations/{LAYER}", {"nonfinite": data}, sample=slice(start, stop))


def test_write_refuses_data_of_another_shape(run):
    with pytest.raises(ValueError, match=r"data of shape .* do not fit a region"):
        run.write(
            f"activations/{LAYER}", {"nonfinite": np.zeros((4, 2), np.int32)}, sample=slice(0, 4)
        )


def test_read_returns_written_regions_and_the_short_last_batch(run):
    everything = np.random.default_rng(0).integers(1, 99, (10, 3)).astype(np.int32)
    for part in (slice(4, 8), slice(0, 4), slice(8, 10)):
        run.write(f"activations/{LAYER}", {"nonfinite": everything[part]}, sample=part)
    np.testing.assert_array_equal(run.read(f"activations/{LAYER}", "nonfinite"), everything)


def test_unwritten_arrays_are_nan_in_open_and_an_error_in_read(run):
    for group, name in ((f"activations/{LAYER}", "activation"), ("scores/depth", "score")):
        values = run.open(group, require_complete=False)[name].values
        assert np.isnan(values).all()
    with pytest.raises(CorruptChunkError, match="is missing"):
        run.read("scores/depth", "score")


def test_read_equals_xarray_isel(run):
    values = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 16, 3), np.uint8)
    run.write("step_images", {"trajectory": values, "clean": values})
    there = run.open("step_images").trajectory
    for where in (
        {},
        {"step": 1},
        {"sample": slice(2, 9), "rgb": 0},
        {"sample": np.array([3, 7, 9]), "step": 2},
        {"sample": np.array([1, 5]), "y": slice(4, 8), "x": np.array([2, 9])},
    ):
        assert (run.read("step_images", "trajectory", **where) == there.isel(where).values).all()
        assert run.read("step_images", "trajectory", **where).dtype == np.uint8


def test_write_stores_chunks_of_zeros(run):
    shape = run.open(f"activations/{LAYER}").activation.shape
    run.write(
        f"activations/{LAYER}",
        {"activation": np.zeros((4, *shape[1:]), np.float16)},
        sample=slice(0, 4),
    )
    assert (run.read(f"activations/{LAYER}", "activation", sample=slice(0, 4)) == 0).all()


def test_run_reads_study_json_once(run, monkeypatch):
    names = []
    read = Location.read_bytes

    def counted(self, name):
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(Location, "read_bytes", counted)
    opened = Run(run.url)
    assert opened.study is opened.study
    assert opened.n_stored == len(opened.samples) == 10
    assert opened.probe_inputs
    assert names.count("study.json") == 1


def test_xarray_opens_a_run_with_coordinates_and_units(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(run.url, engine="zarr")
    group = tree[f"activations/{LAYER}"]
    assert group.activation.dims == ("sample", "step", "y", "x", "channel")
    for name in ("sample", "step", "timestep", "y", "x", "channel"):
        assert name in group.coords
        assert group[name].attrs["description"]
        assert group[name].attrs["units"]
    assert group.step.values.tolist() == [1, 2, 3]
    assert group.y.values.tolist() == [2, 6, 10, 14]
    scores = tree["scores/depth"]
    assert list(scores.layer.values) == [*run.layers, "latents", "clean_pixels"]
    assert set(scores.split.values) == {"validation", "test"}
    for node in tree.subtree:
        for name, array in node.ds.data_vars.items():
            assert array.attrs["description"], name
            assert array.attrs["units"], name
    assert tree["labels/depth"].attrs["units"] == "log of depth, relative to the image's mean"
