"""Downloads of a study's files from a server that speaks the hub's protocol."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub.constants
import pytest
import torch
from hub_server import COMMIT, Hub, hub_server
from labeler_weights import dpt
from safetensors.torch import load_file
from transformers import CLIPImageProcessor

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.labelers.base import LabelerEntry
from ldmprobe_core.labelers.registry import register_labeler
from ldmprobe_core.models.sources.lookup import source_of
from ldmprobe_core.pipeline.fetching.failures import fetch_failures
from ldmprobe_core.pipeline.fetching.fetch import prepare_fetch, published_of
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.readers.hub_cache import HubRepository, cached_snapshot

MODEL = "tiny/model"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tiny_model, tmp_path, monkeypatch):
    """A hub with the tiny model, also with files that no run reads.

    As in Stable Diffusion 1.4, the pipeline has an image processor and a safety checker.
    """
    index = json.loads((tiny_model / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    with hub_server() as hub:
        hub.add(MODEL, tiny_model)
        hub.repositories[MODEL] |= {
            "model_index.json": json.dumps(index).encode(),
            "feature_extractor/preprocessor_config.json": CLIPImageProcessor()
            .to_json_string()
            .encode(),
            "safety_checker/config.json": b"{}",
            "safety_checker/model.safetensors": b"x" * 99,
        }
        hub.repositories[MODEL] |= {"model.ckpt": b"x" * 99, "unet/model.fp16.safetensors": b"x"}
        hub.use(monkeypatch, tmp_path / "hub")
        yield hub


@pytest.fixture
def study(tiny_study):
    """A study of the hub's model, without labelers that need weights."""

    def make(model=MODEL, **labels):
        rest = {"foreground": None, "depth": None, "shading": "retinex", "class": None}
        return tiny_study(model={"source": model}, labels=rest | labels)

    return make


def fetch(study, **files):
    """Fetch everything; return the sizes that were announced and that were reported."""
    downloads = prepare_fetch(study, **files)
    announced = sum(download.size for download in downloads)
    counts = []
    for download in downloads:
        download.run(counts.append)
    return announced, sum(counts)


def plan_offline(study, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return plan_study(study)


def test_fetch_brings_a_model_that_loads_without_network(hub, study, monkeypatch, tmp_path):
    announced, reported = fetch(study())
    wanted = {
        name: data
        for name, data in hub.repositories[MODEL].items()
        if name.endswith((".json", ".txt", ".safetensors")) and "fp16" not in name
        if not name.startswith("safety_checker/")
    }
    snapshot = tmp_path / "hub/models--tiny--model/snapshots" / COMMIT
    here = {
        path.relative_to(snapshot).as_posix(): path.read_bytes()
        for path in snapshot.rglob("*")
        if path.is_file()
    }
    assert here == wanted
    # The index was fetched before the sizes were announced, since it names the components.
    assert announced == sum(map(len, wanted.values())) - len(wanted["model_index.json"])
    assert reported >= announced
    record = json.loads((snapshot.parents[1] / "checksums" / f"{COMMIT}.json").read_text())
    assert record["files"][UNET] == {
        "bytes": len(wanted[UNET]),
        "sha256": hashlib.sha256(wanted[UNET]).hexdigest(),
    }
    assert plan_offline(study(), monkeypatch).missing == ()
    loaded = source_of(study().model).load(study(), torch.device("cpu"))
    assert isinstance(loaded.feature_extractor, CLIPImageProcessor)
    assert loaded.safety_checker is None
    requests = len(hub.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert fetch(study()) == (0, 0)
    assert len(hub.requests) == requests


def test_fetch_resumes_a_cut_connection_within_a_file(hub: Hub, study):
    hub.faults[UNET] = [1000]
    fetch(study())
    spans = [span for method, name, span in hub.requests if name == UNET and method == "GET"]
    assert spans == [None, "bytes=1000-"]
    snapshot = cached_snapshot(MODEL)
    assert (snapshot / UNET).read_bytes() == hub.repositories[MODEL][UNET]


def test_fetch_continues_after_a_failure_with_the_missing_files(hub: Hub, study):
    hub.faults[UNET] = [1000, 503]
    with pytest.raises(RunError, match=r"model\.source: .*status 503.*Fix: repeat the command"):
        fetch(study())
    assert cached_snapshot(MODEL) is not None
    hub.requests.clear()
    fetch(study())
    assert {name for _, name, _ in hub.requests} == {UNET}


def test_fetch_keeps_the_files_of_another_commit_if_the_hub_fails(hub: Hub, study):
    """The client then gives the commit in the cache, whose files differ from the announced ones."""
    fetch(study())
    before = {path: path.read_bytes() for path in cached_snapshot(MODEL).rglob("*.json")}
    hub.commit = "fedcba98" * 5
    hub.repositories[MODEL]["unet/config.json"] += b" "
    (download,) = prepare_fetch(study())
    hub.denied[MODEL] = (503, {})
    with pytest.raises(RunError, match=rf"commit fedcba98fedc, but .* {COMMIT[:12]} .*repeat"):
        download.run([].append)
    assert {path: path.read_bytes() for path in before} == before
    del hub.denied[MODEL]
    fetch(study())
    assert cached_snapshot(MODEL).name == hub.commit


def test_fetch_deletes_a_file_that_differs_from_its_checksum(hub: Hub, study):
    fetch(study())
    path = cached_snapshot(MODEL) / UNET
    data = path.read_bytes()
    path.resolve().write_bytes(bytes(len(data)))
    with pytest.raises(RunError, match=r"model\.source: .* differs from its published checksum"):
        fetch(study())
    fetch(study())
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "no public repository of this name .*correct the name"),
        (401, "RepoNotFound", "no public repository.*HF_TOKEN"),
        (403, "GatedRepo", "consent to its licence"),
        (404, "RevisionNotFound", "no such branch, tag or commit.*key revision"),
        (401, "", "refuses the login .*status 401.*hf auth login"),
    ],
)
def test_fetch_refuses_a_repository_that_cannot_be_read(hub: Hub, study, status, code, words):
    hub.denied[MODEL] = (status, {"X_Error_Code": code} if code else {})
    with pytest.raises(UserError, match=rf"model\.source: .*{words}"):
        fetch(study())


def http_status(code):
    request = httpx.Request("GET", "https://example.com/a.csv")
    response = httpx.Response(code, request=request)
    return httpx.HTTPStatusError("refused", request=request, response=response)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (PermissionError(13, "Permission denied", "/cache/x"), UserError, "/cache/x.*Fix: correct"),
        (OSError(30, "Read-only file system", "/cache"), UserError, "Read-only.*by --to"),
        (OSError(28, "No space left"), RunError, "Fix: free space"),
        (OSError(104, "Connection reset by peer"), RunError, "Fix: repeat the command"),
        (http_status(404), UserError, "status 404.*Fix: correct the key or HF_ENDPOINT"),
        (http_status(410), UserError, "status 410"),
        (http_status(408), RunError, "status 408.*Fix: repeat"),
        (http_status(429), RunError, "status 429.*Fix: repeat"),
        (http_status(503), RunError, "status 503.*Fix: repeat"),
    ],
)
def test_fetch_failures_advises_a_repetition_only_where_it_may_help(error, kind, words):
    with (
        pytest.raises(kind, match=rf"^model\.source: .*{words}"),
        fetch_failures("model.source", "x"),
    ):
        raise error


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://127.0.0.1:9", "http://127.0.0.1:port"])
def test_fetch_refuses_an_endpoint_that_is_no_address(hub: Hub, study, monkeypatch, endpoint):
    hub.url = endpoint
    hub.use(monkeypatch, Path(huggingface_hub.constants.HF_HUB_CACHE))
    with pytest.raises(UserError, match=r"server cannot be used .*Fix: correct HF_ENDPOINT"):
        fetch(study())


def test_prepare_fetch_refuses_what_cannot_work(hub: Hub, study, monkeypatch):
    hub.repositories["no/weights"] = {"README.md": b""}
    with pytest.raises(UserError, match=r"no weights .*'no/weights'"):
        fetch(study("no/weights"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=100, free=10))
    with pytest.raises(UserError, match=r"HF_HUB_CACHE: .* 0\.0 MB free .*Fix: free space"):
        fetch(study())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE: it is set"):
        fetch(study())


def test_fetch_converts_a_labelers_pickle(hub: Hub, study, tmp_path, monkeypatch):
    dpt(tmp_path / "dpt")
    weights = tmp_path / "dpt/model.safetensors"
    state = load_file(weights)
    weights.unlink()
    torch.save(state, tmp_path / "dpt/pytorch_model.bin")
    hub.add("tiny/dpt", tmp_path / "dpt")
    depth = {"name": "midas", "weights": "tiny/dpt"}
    fetch(study(depth=depth))
    snapshot = cached_snapshot("tiny/dpt")
    converted = load_file(snapshot / "model.safetensors")
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)
    assert not (snapshot / "pytorch_model.bin").exists()
    assert plan_offline(study(depth=depth), monkeypatch).missing == ()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert fetch(study(depth=depth)) == (0, 0)


class Opens:
    """Object whose pickle asks for a connection when it is read."""

    def __reduce__(self):
        import socket

        return socket.create_connection, (("127.0.0.1", 9),)


def test_fetch_refuses_a_pickle_of_more_than_tensors(hub: Hub, study, tmp_path):
    torch.save({"weight": Opens()}, tmp_path / "pickle")
    data = (tmp_path / "pickle").read_bytes()
    hub.repositories["tiny/evil"] = {"config.json": b"{}", "pytorch_model.bin": data}
    with pytest.raises(UserError, match=r"labels\.depth: pytorch_model\.bin is not a pickle of"):
        fetch(study(depth={"name": "midas", "weights": "tiny/evil"}))


def test_fetch_brings_prompt_files_and_continues_within_them(hub: Hub, tiny_study, tmp_path):
    data = b"prompt,seed\na red ball,1\na blue cube,2\n"
    hub.files["/raw/prompts.csv"] = data
    hub.faults["/raw/prompts.csv"] = [20]
    target = tmp_path / "new/prompts.csv"
    study = tiny_study(prompts={"files": {"all": str(target)}, "samples": 3})
    files = {"paper_files": {"prompts.csv": f"{hub.url}/raw/prompts.csv"}}
    with pytest.raises(RunError, match=r"prompts\.files: the download was not completed"):
        fetch(study, **files)
    fetch(study, **files)
    assert target.read_bytes() == data
    assert ("GET", "/raw/prompts.csv", "bytes=20-") in hub.requests
    record = json.loads(Path(f"{target}.json").read_text())
    assert record["sha256"] == hashlib.sha256(data).hexdigest()
    assert prepare_fetch(study, **files) == []


@pytest.mark.parametrize(
    ("part", "fault", "words"),
    [
        (b"prompt,seed\n", -1, "continued another part of the file than was asked for"),
        (b"x" * 99, None, "has 99 bytes instead of the 39 that the server announced"),
    ],
)
def test_fetch_joins_no_parts_that_are_not_of_one_file(
    hub: Hub, tiny_study, tmp_path, part, fault, words
):
    data = b"prompt,seed\na red ball,1\na blue cube,2\n"
    hub.files["/raw/prompts.csv"] = data
    hub.faults["/raw/prompts.csv"] = [] if fault is None else [fault]
    target = tmp_path / "prompts.csv"
    target.with_name("prompts.csv.part").write_bytes(part)
    study = tiny_study(prompts={"files": {"all": str(target)}, "samples": 3})
    files = {"paper_files": {"prompts.csv": f"{hub.url}/raw/prompts.csv"}}
    with pytest.raises(RunError, match=rf"prompts\.files: .*{words}.*Fix: repeat the command"):
        fetch(study, **files)
    assert not target.exists()
    fetch(study, **files)
    assert target.read_bytes() == data


def test_fetch_writes_nothing_outside_the_cache(hub: Hub, study, tmp_path):
    """The names of components are those of a repository's file, and would be parts of paths."""
    outside = "../" * 12 + str(tmp_path / "outside").lstrip("/")
    index = json.loads(hub.repositories[MODEL]["model_index.json"])
    index[outside] = ["diffusers", "UNet2DConditionModel"]
    hub.repositories[MODEL] |= {
        "model_index.json": json.dumps(index).encode(),
        f"{outside}/config.json": b"{}",
        f"{outside}/model.safetensors": b"x" * 9,
    }
    fetch(study())
    assert not (tmp_path / "outside").exists()
    assert cached_snapshot(MODEL) is not None


def test_fetch_loads_a_labeler_whose_package_fetches_its_weights(hub: Hub, study):
    loads = []
    entry = LabelerEntry(lambda spec, device: loads.append(spec.name), published=None)
    register_labeler("shading", "own-package", entry)
    fetch(study(shading="own-package"))
    assert loads == ["own-package"]
    # This package is not installed here; the plan says so.
    *_, download = prepare_fetch(study(shading="intrinsic"))
    assert download.field == "labels.shading"
    download.run(lambda _: None)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"source": "/weights/dreamy.safetensors", "config": "owner/name"}, "model.config"),
        ({"source": "owner/name"}, "model.source"),
    ],
)
def test_published_of_a_model_is_its_repository_or_that_of_a_single_files_configs(
    tiny_study, model, expected
):
    published = dict(published_of(tiny_study(model=model)))
    assert published == {expected: HubRepository("owner/name", None)}
