"""Files of a location: whole writes, clients of an object store, messages."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run


def test_write_text_leaves_no_temporary_file(tmp_path):
    run = Run(str(tmp_path / "r"))
    run.location.write_text("a/b.txt", "één")
    assert run.location.read_text("a/b.txt") == "één"
    assert [p.name for p in (tmp_path / "r" / "a").iterdir()] == ["b.txt"]


def test_location_create_succeeds_for_one_of_four_threads(tmp_path):
    location = Location(str(tmp_path / "place"))
    for i in range(50):
        with ThreadPoolExecutor(4) as pool:
            took = list(pool.map(lambda k, i=i: location.create(f"{i}", f"by {k}"), range(4)))
        assert sum(took) == 1
        assert location.read_text(f"{i}") == f"by {took.index(True)}"
    assert len(location.files()) == 50


def test_location_has_one_client_for_each_endpoint(monkeypatch):
    clients = []
    for endpoint in ("http://127.0.0.1:9", "http://127.0.0.1:7"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        clients.append(Run("s3://bucket/run").location._files())
    assert [client.endpoint_url for client in clients] == [
        "http://127.0.0.1:9",
        "http://127.0.0.1:7",
    ]


def test_unusable_locations_are_user_errors(tmp_path, tiny_study):
    with pytest.raises(UserError, match="local folder or s3://"):
        Run("ftp://host/x")
    with pytest.raises(UserError, match=r"holds no summary\.json"):
        Run(str(tmp_path)).location.read_text("summary.json")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        prepare_run(tiny_study(), str(file))
