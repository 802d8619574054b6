"""Files of a location: whole writes, clients of an object store, messages."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import zarr

from ldmprobe_core.errors import RunError, UserError
from ldmprobe_core.pipeline.prepare import prepare_run, run_in
from ldmprobe_core.storage import filesystem
from ldmprobe_core.storage.filesystem import Location, normal_url
from ldmprobe_core.storage.lease import hold_lease
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
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    clients = []
    for endpoint in ("http://127.0.0.1:9", "http://127.0.0.1:7"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        clients.append(Run("s3://bucket/run").location.client())
    assert [client.store.config["endpoint"] for client in clients] == [
        "http://127.0.0.1:9",
        "http://127.0.0.1:7",
    ]


def test_no_message_of_a_store_has_a_password(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://admin:hidden@127.0.0.1:9")
    with pytest.raises(UserError, match=r"GET http://127\.0\.0\.1:9/bucket") as unreached:
        Location("s3://bucket/run").require_reachable()
    assert "hidden" not in str(unreached.value)
    with pytest.raises(UserError, match=r"^store 's3://bucket/run': .* password") as refused:
        Location("s3://key:hidden@bucket/run")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("where", ["root", "prefix"])
def test_empty_prefix_is_reachable_for_credentials_that_may_list_no_more_of_the_bucket(
    monkeypatch, where
):
    """s3fs does not tell an empty prefix from a missing bucket; a refused prefix is an error."""
    monkeypatch.setenv("LDMPROBE_S3_CLIENT", "s3fs")

    class Files:
        def __init__(self, url, patient):
            self.url = url

        def entries(self, name):
            if self.url == "s3://bucket" or where == "prefix":
                raise PermissionError("Access Denied")
            raise FileNotFoundError(self.url)

    monkeypatch.setattr(filesystem, "FsspecFiles", Files)
    refused = pytest.raises(UserError, match="cannot be reached")
    with refused if where == "prefix" else nullcontext():
        Location("s3://bucket/run").require_reachable()


def test_unusable_locations_are_user_errors(tmp_path, tiny_study):
    with pytest.raises(UserError, match="local folder or s3://"):
        Run("ftp://host/x")
    with pytest.raises(UserError, match=r"holds no summary\.json"):
        Run(str(tmp_path)).location.read_text("summary.json")
    file = tmp_path / "file"
    file.write_text("")
    for store in (file, file / "runs", file / "a" / "b"):
        with pytest.raises(UserError, match=rf"a file in that of a folder \({file}\). Fix: "):
            prepare_run(tiny_study(), str(store))


def test_writing_below_a_file_names_the_file(tmp_path):
    location = Location(str(tmp_path / "run"))
    location.write_text("probes", "a file")
    writes = (
        lambda: location.write_text("probes/x", "x"),
        lambda: location.write_text("probes/a/b", "x"),
        lambda: location.write_many({"probes/x": b"x"}),
        lambda: location.create("probes/x", "x"),
    )
    for write in writes:
        with pytest.raises(UserError, match=r"a file in that of a folder \(.*/run/probes"):
            write()
    with pytest.raises(UserError, match=r"a file in that of a folder \(.*/run/probes"):
        zarr.create_group(Run(location.url).store, path="probes/depth")
    assert location.read_text("probes") == "a file"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://runs", "s3://runs"),
        ("s3://runs/", "s3://runs"),
        ("s3://runs/a/b///", "s3://runs/a/b"),
        ("S3://runs/A", "s3://runs/A"),
        ("s3://runs/my study=1", "s3://runs/my study=1"),
        ("/runs//x/../y/", "/runs/y"),
        ("//runs", "/runs"),
        ("/", "/"),
        ("/a/$b/~c", "/a/$b/~c"),
    ],
)
def test_normal_url_has_one_spelling(url, expected):
    assert normal_url(url) == expected == normal_url(expected)


@pytest.mark.parametrize(
    "url",
    [
        "", " ", "\t", "a\0b", " runs", "runs ", "s3://", "s3:///", "s3:///x", "s3://runs//x",
        "s3://runs/ /x", "s3://runs/a/../b", "s3://runs/./b", "s3://..", "s3:runs/x", "s3:/runs/x",
        "s3://r", "s3://a b/c", "s3://key:secret@runs/x", "s3://runs/x?versionId=3", "s3://runs/x#y",
        "s3://runs/%2e%2e/x", "s3://runs/*", "file:///tmp/x", "memory://x", "gs://bucket/x", "https://host/x",
        "://x", "~no-such-user/x", "$HOME/x", "${STORE}/x",
    ],
)  # fmt: skip
def test_normal_url_refuses_malformed_addresses(url):
    with pytest.raises(UserError, match=r"^store .*\. Fix: give a local folder or s3://") as caught:
        Location(url)
    assert "\n" not in str(caught.value)


def test_relative_stores_are_absolute_from_the_start(tmp_path, monkeypatch, tiny_study):
    monkeypatch.chdir(tmp_path)
    run, in_store = Run("runs/a"), run_in("./runs", tiny_study())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # as a worker that was started in another folder
    run.location.write_text("note", "here")
    assert (tmp_path / "runs" / "a" / "note").read_text() == "here"
    assert run.url == f"{tmp_path}/runs/a"
    assert in_store.url == f"{tmp_path}/runs/{tiny_study().run_name}"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run("~/runs").url == f"{tmp_path}/runs"


NO_LINKS = [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV]


def refuse_links(monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("code", NO_LINKS, ids=errno.errorcode.get)
def test_location_create_without_hard_links(tmp_path, monkeypatch, code):
    refuse_links(monkeypatch, code)
    location = Location(str(tmp_path / "place"))
    assert location.create("1", "mine")
    assert not location.create("1", "another's")
    assert location.read_text("1") == "mine"
    assert location.files() == ["1"]


def test_location_create_without_hard_links_succeeds_for_one_of_four_threads(tmp_path, monkeypatch):
    refuse_links(monkeypatch, errno.ENOTSUP)
    location, visible = Location(str(tmp_path / "place")), set()
    replace = os.replace

    def watched(source, target):
        if ".part" not in str(source):  # the step that puts the content in its place
            visible.add(Path(target).read_text())
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    for i in range(20):
        with ThreadPoolExecutor(4) as pool:
            took = list(pool.map(lambda k, i=i: location.create(f"{i}", f"by {k}"), range(4)))
        assert sum(took) == 1
        assert location.read_text(f"{i}") == f"by {took.index(True)}"
    assert visible == {""}  # never a part of the content
    assert len(location.files()) == 20


def test_hold_lease_without_hard_links(tmp_path, monkeypatch):
    refuse_links(monkeypatch, errno.EPERM)
    url = str(tmp_path / "run")
    with (
        hold_lease(url, "first") as lease,
        pytest.raises(UserError, match="worked on by first"),
        hold_lease(url, "second"),
    ):
        lease.require_held()
    assert not (tmp_path / "run.lease").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "no space is left"),
        (errno.EFBIG, "no space is left"),
        (errno.EROFS, "cannot be written to"),
        (errno.EACCES, "cannot be written to"),
        (None, "cannot be written to"),
    ],
    ids=["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "object store"],
)
@pytest.mark.parametrize("operation", ["write_text", "write_many", "create", "remove"])
def test_failed_writes_are_one_sentence(tmp_path, monkeypatch, operation, code, words):
    location = Location(str(tmp_path / "place"))
    location.write_text("old", "before")

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code)) if code else PermissionError("object store: denied")

    for name in ("write", "write_many", "create", "remove"):
        monkeypatch.setattr(type(location.client()), name, refuse)
    calls = {
        "write_text": lambda: location.write_text("new", "x"),
        "write_many": lambda: location.write_many({"new": b"x"}),
        "create": lambda: location.create("new", "x"),
        "remove": lambda: location.remove("old"),
    }
    with pytest.raises(UserError, match=words) as caught:
        calls[operation]()
    assert str(caught.value).count("Fix: ") == 1
    assert location.files() == ["old"]


def test_read_text_of_damaged_bytes_is_one_sentence(tmp_path):
    location = Location(str(tmp_path))
    location.write_bytes("summary.json", b"\xff\xfe{")
    with pytest.raises(RunError, match=r"summary\.json is damaged \(it is not UTF-8 text\)"):
        location.read_text("summary.json")


def test_a_folder_that_this_user_may_not_enter_is_one_sentence(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", path)

    location = Location(str(tmp_path))
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(RunError, match=r"study\.json: the permissions of its folder .*Fix: "):
        location.read_bytes("study.json")
