"""The store: regions, marks, and what a stranger reads."""

import asyncio
import os
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype

from flows import cli
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.prepare import prepare_run, run_in
from ldmprobe_core.storage import object_store
from ldmprobe_core.storage.checksum_store import CorruptChunkError
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.object_store import open_store
from ldmprobe_core.storage.run import Run
from tasks.retries import is_transient

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture
def run(tiny_study, tmp_path):
    return prepare_run(tiny_study(prompts={"samples": 10}), str(tmp_path / "runs"))


def test_a_client_that_there_is_not_is_said_so(monkeypatch):
    monkeypatch.setenv("LDMPROBE_CHUNKS", "curl")
    with pytest.raises(UserError, match="LDMPROBE_CHUNKS is 'curl': give obstore or s3fs"):
        open_store("s3://bucket/prefix")


def test_no_credentials_are_one_sentence(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match="no credentials for the object store: set AWS_ACCESS"):
        open_store("s3://bucket/prefix")


def test_endpoint_and_region_are_found_as_any_aws_client_does(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        "[profile mine]\nregion = eu-west-3\nservices = there\n"
        "[services there]\ns3 =\n  endpoint_url = http://127.0.0.1:2\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    config = open_store("s3://bucket/a").store.config
    assert (config["region"], config["endpoint"]) == ("eu-west-3", "http://127.0.0.1:2")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    config = open_store("s3://bucket/a").store.config
    assert config["region"] == "eu-central-1"
    assert "endpoint" not in config
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:3")
    assert open_store("s3://bucket/a").store.config["endpoint"] == "http://127.0.0.1:3"


@pytest.mark.parametrize(("status", "passing"), [(503, True), (403, False)])
def test_what_an_object_store_answers_is_an_error_of_the_system(monkeypatch, status, passing):
    """The whole of Zarr, Prefect's retries and messages know those, and none of a client's own."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(object_store, "_RETRIES", {"max_retries": 0})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        store = open_store("s3://bucket/prefix")
        with pytest.raises(OSError, match="object store: ") as found:
            asyncio.run(store.get("a/c/0", default_buffer_prototype()))
    finally:
        server.shutdown()
        server.server_close()
    assert is_transient(found.value) is passing
    assert "\n" not in str(found.value)


def test_no_secret_is_in_what_a_store_shows_of_itself(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-nobody-sees")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_store("s3://bucket/prefix")
    assert "a-secret" not in repr(store) + str(store) + repr(store.store.config)


def test_a_region_that_cuts_a_chunk_is_refused(run):
    for start, stop in ((0, 2), (2, 6), (1, 5), (4, 12), (4, 4)):
        data = np.zeros((stop - start, 3), np.int32)
        with pytest.raises(ValueError, match=f"sample {start}\\.\\.{stop}.*chunks of 4"):
            run.write(f"activations/{LAYER}", {"nonfinite": data}, sample=slice(start, stop))


def test_data_of_another_shape_is_refused(run):
    with pytest.raises(ValueError, match=r"data of shape .* for a region"):
        run.write(
            f"activations/{LAYER}", {"nonfinite": np.zeros((4, 2), np.int32)}, sample=slice(0, 4)
        )


def test_regions_and_the_short_last_batch_come_back_as_written(run):
    everything = np.random.default_rng(0).integers(1, 99, (10, 3)).astype(np.int32)
    for part in (slice(4, 8), slice(0, 4), slice(8, 10)):
        run.write(f"activations/{LAYER}", {"nonfinite": everything[part]}, sample=part)
    np.testing.assert_array_equal(run.read(f"activations/{LAYER}", "nonfinite"), everything)


def test_what_was_never_written_shows_as_nan_and_is_refused_where_it_matters(run):
    assert np.isnan(run.open(f"activations/{LAYER}").activation.values).all()
    assert np.isnan(run.open("scores/depth").score.values).all()
    with pytest.raises(CorruptChunkError, match="is missing"):
        run.read("scores/depth", "score")


def test_reading_is_xarrays_isel(run):
    values = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 16, 3), np.uint8)
    images = {"trajectory": values, "clean": values, "image": values[:, 0]}
    run.write("images", images)
    there = run.open("images").trajectory
    for where in (
        {},
        {"step": 1},
        {"sample": slice(2, 9), "rgb": 0},
        {"sample": np.array([3, 7, 9]), "step": 2},
        {"sample": np.array([1, 5]), "y": slice(4, 8), "x": np.array([2, 9])},
    ):
        assert (run.read("images", "trajectory", **where) == there.isel(where).values).all()
        assert run.read("images", "trajectory", **where).dtype == np.uint8


def test_metadata_that_changes_is_seen_by_whoever_had_read_it(run):
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


def test_zeros_are_written_not_skipped(run):
    shape = run.open(f"activations/{LAYER}").activation.shape
    run.write(
        f"activations/{LAYER}",
        {"activation": np.zeros((4, *shape[1:]), np.float16)},
        sample=slice(0, 4),
    )
    assert (run.read(f"activations/{LAYER}", "activation", sample=slice(0, 4)) == 0).all()


def test_marks(run):
    assert run.progress.completed("generated").tolist() == [False, False, False]
    run.progress.mark_done("generated", 1)
    run.progress.mark_done("probed", 2, 1)
    assert run.progress.completed("generated").tolist() == [False, True, False]
    assert run.progress.completed("probed").sum() == 1
    assert run.progress.completed("probed")[2, 1]


def test_study_json_is_read_once_a_run(run, monkeypatch):
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


def test_a_stranger_needs_xarray_alone(run):
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
    assert list(scores.layer.values) == [*run.layers, "latents"]
    assert set(scores.split.values) == {"validation", "test"}
    for node in tree.subtree:
        for name, array in node.ds.data_vars.items():
            assert array.attrs["description"], name
            assert array.attrs["units"], name
    assert tree["labels/depth"].attrs["units"] == "log of depth, relative to the image's mean"


def test_a_run_is_not_there_before_it_is_whole(tiny_study, tmp_path, monkeypatch):
    write_text = Location.write_text

    def cut_off(self, name, text):
        if name == "study.json":
            raise OSError("cut off")
        write_text(self, name, text)

    monkeypatch.setattr(Location, "write_text", cut_off)
    with pytest.raises(OSError, match="cut off"):
        prepare_run(tiny_study(), str(tmp_path))
    monkeypatch.undo()
    url = f"{tmp_path}/{tiny_study().run_name}"
    assert not Run(url).exists
    prepare_run(tiny_study(), str(tmp_path))
    assert Run(url).exists


def test_another_model_does_not_continue_a_run(tiny_study, tmp_path):
    import shutil

    study = tiny_study()
    copy = tmp_path / "model"
    shutil.copytree(study.model.source, copy)
    moved = study.model_copy(update={"model": study.model.model_copy(update={"source": str(copy)})})
    prepare_run(moved, str(tmp_path / "runs"))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UserError, match="fingerprint"):
        prepare_run(moved, str(tmp_path / "runs"))
    # A finished run is not shown as this model's either.
    run = run_in(str(tmp_path / "runs"), moved)
    run.location.write_text("summary.json", "{}")
    path = tmp_path / "moved.yaml"
    path.write_text(moved.to_json())
    with pytest.raises(UserError, match="fingerprint"):
        cli.run(str(path), str(tmp_path / "runs"), None)


def test_mistakes_of_stores(tmp_path, tiny_study):
    with pytest.raises(UserError, match="local folder or s3://"):
        Run("ftp://host/x")
    with pytest.raises(UserError, match=r"holds no summary\.json"):
        Run(str(tmp_path)).location.read_text("summary.json")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        prepare_run(tiny_study(), str(file))


def test_text_is_written_whole_or_not_at_all(tmp_path):
    run = Run(str(tmp_path / "r"))
    run.location.write_text("a/b.txt", "één")
    assert run.location.read_text("a/b.txt") == "één"
    assert [p.name for p in (tmp_path / "r" / "a").iterdir()] == ["b.txt"]


def test_another_endpoint_is_another_client(monkeypatch):
    clients = []
    for endpoint in ("http://127.0.0.1:9", "http://127.0.0.1:7"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        clients.append(Run("s3://bucket/run").location._files())
    assert [client.endpoint_url for client in clients] == [
        "http://127.0.0.1:9",
        "http://127.0.0.1:7",
    ]
