"""Both S3 clients against a real object store: files, faults, certificates and rotating keys."""

import datetime
import ipaddress
import json
import ssl
import sys

import botocore.session
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from faults import Faults, proxy
from run_helpers import small_study
from tiers import rest_slow

from infra.local_store import object_store
from infra.stack import free_ports
from ldmprobe_core.errors import UserError
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.pipeline.units import UNITS
from ldmprobe_core.storage.filesystem import Location
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.object_store import open_store
from ldmprobe_core.storage.stores.s3_client import BotocoreCredentials

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def signed(subject, key, issuer, issuer_key, extension):
    """A certificate of 100 years in PEM."""
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        for name in (issuer, subject)
    ]
    certificate = (
        x509.CertificateBuilder(*names, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=36500))
        .add_extension(extension, critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def certificates(tmp_path):
    """Certificate of an authority of one's own; certificate of 127.0.0.1 and its key."""
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    contents = {
        "ca.pem": signed("ours", authority, "ours", authority, x509.BasicConstraints(True, None)),
        "server.pem": signed("store", key, "ours", authority, address),
        "key.pem": secret,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in contents]


@pytest.mark.slow
@pytest.mark.parametrize("client", ["obstore", "s3fs"])
def test_a_certificate_of_ones_own_is_trusted_if_it_is_named(
    tiny_model, tmp_path, monkeypatch, certificates, client
):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificates[1:])
    (port,) = free_ports(1)
    monkeypatch.setenv("LDMPROBE_S3_CLIENT", client)
    with object_store(tmp_path / "store") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with proxy(environment["AWS_ENDPOINT_URL"], Faults(), port, tls) as endpoint:
            assert endpoint.startswith("https://")
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            study = small_study("tls", tiny_model, 4)
            words = {"obstore": "invalid certificate: UnknownIssuer", "s3fs": "SSL"}[client]
            with pytest.raises(UserError, match=rf"cannot be written to \(.*{words}"):
                prepare_run(study, "s3://runs")
            monkeypatch.setenv("AWS_CA_BUNDLE", str(certificates[0]))
            run = prepare_run(study, "s3://runs")
            group = f"activations/{run.layers[0]}"
            values = np.arange(np.prod(run.open(group).activation.shape), dtype=np.float16)
            values = values.reshape(run.open(group).activation.shape)
            run.write(group, {"activation": values})
            np.testing.assert_array_equal(Run(run.url).read(group, "activation"), values)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_certificates_that_cannot_be_read_are_refused(tmp_path, monkeypatch, content):
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_bytes(content)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "certificates")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:7")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    with pytest.raises(UserError, match=r"^AWS_CA_BUNDLE: .*ca\.pem.*\. Fix: "):
        open_store("s3://bucket/run")


def test_keys_that_a_credential_process_rotates_are_used(tmp_path, monkeypatch):
    """A profile may name a program that prints keys which expire; each call runs it again."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    printed, script, config = (tmp_path / n for n in ("keys.json", "print.py", "config"))
    script.write_text(f"print(open({str(printed)!r}).read())")
    config.write_text(f"[profile lab]\ncredential_process = {sys.executable} {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "lab")

    def rotate(number):
        # Within ten minutes of this time botocore renews keys at every request.
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)
        record = {
            "Version": 1, "AccessKeyId": f"key{number}", "SecretAccessKey": f"secret{number}",
            "SessionToken": f"token{number}", "Expiration": soon.isoformat(),
        }  # fmt: skip
        printed.write_text(json.dumps(record))

    rotate(1)
    credentials = BotocoreCredentials(botocore.session.get_session())
    for number in (1, 2, 3):
        rotate(number)
        given = credentials()
        assert (given["access_key_id"], given["secret_access_key"], given["token"]) == (
            f"key{number}", f"secret{number}", f"token{number}",
        )  # fmt: skip
        assert given["expires_at"] > datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Environment variables of an object store with an empty bucket ``runs``."""
    with object_store(tmp_path_factory.mktemp("bucket") / "store") as environment:
        yield environment


@pytest.fixture
def behind(running, monkeypatch):
    """Return what a proxy before the object store does, and connect this process to the proxy."""
    for name, value in running.items():
        monkeypatch.setenv(name, value)
    faults = Scripted()
    with proxy(running["AWS_ENDPOINT_URL"], faults, free_ports(1)[0]) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield faults


class Scripted(Faults):
    """Faults of the next requests, in order; later requests pass."""

    def __init__(self):
        super().__init__()
        self.script = []

    def next(self):
        return self.script.pop(0) if self.script else "pass"

    def count(self):
        """Return the number of requests since the last call."""
        count = self.done.total()
        self.done.clear()
        return count


@pytest.mark.parametrize("client", rest_slow(["obstore", "s3fs"], (0,)))
def test_files_in_a_bucket(behind, monkeypatch, client):
    monkeypatch.setenv("LDMPROBE_S3_CLIENT", client)
    location = Location(f"s3://runs/files {client}=1")
    other = Location(f"s3://runs/files {client}=10")  # its name begins with the other's
    other.write_text("a.json", "untouched")
    assert (location.files(), location.folders("")) == ([], [])
    assert not location.has("a.json")
    with pytest.raises(UserError, match=r"holds no a\.json"):
        location.read_bytes("a.json")
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    location.write_text("a.json", "one")
    assert location.create("b.json", "two")
    assert not location.create("b.json", "other")
    large = bytes(range(256)) * 2**15  # 8 MiB, more than obstore would send as one part
    location.write_many({"one/c": b"12", "one/two/d": b"", "two/e f.txt": large})
    assert (location.files(), location.folders("")) == (["a.json", "b.json"], ["one", "two"])
    assert (location.files("one"), location.folders("one")) == (["c"], ["two"])
    assert location.read_bytes("two/e f.txt") == large
    assert location.read_text("b.json") == "two"
    assert location.has("one/two/d")
    assert location.size() == 3 + 3 + 2 + len(large)
    after = datetime.datetime.now(datetime.UTC)
    assert before <= location.modified("one/c") <= after
    with pytest.raises(FileNotFoundError):
        location.modified("one/none")
    location.remove("one/c")
    location.remove("one/c")
    assert location.files("one") == []  # a folder of which SeaweedFS keeps an entry
    location.remove_folder("one")
    location.remove_folder("none")
    assert location.files() == ["a.json", "b.json"]
    location.remove_folder()
    assert location.size() == 0
    assert location.files() == []
    if client == "obstore":
        assert location.folders("") == []  # and so a run can be created here again
    assert other.read_text("a.json") == "untouched"


@pytest.mark.parametrize("client", ["obstore", "s3fs"])
def test_a_bucket_that_does_not_exist_is_named(behind, monkeypatch, client):
    monkeypatch.setenv("LDMPROBE_S3_CLIENT", client)
    Location("s3://runs").require_reachable()
    Location("s3://runs/no/files/yet").require_reachable()
    for url in ("s3://no-such-bucket", "s3://no-such-bucket/runs"):
        with pytest.raises(UserError, match=rf"{url}' cannot be reached .*Fix: check the bucket's"):
            Location(url).require_reachable()


@pytest.mark.slow
@pytest.mark.parametrize(("found", "ours"), [("mine", True), ("another's", False)])
def test_a_creation_whose_answer_is_lost_is_recognized(behind, found, ours):
    location = Location(f"s3://runs/lost-{ours}")
    if not ours:
        assert location.create("1", found)
    behind.script = ["lost answer" if ours else "cut before"]
    assert location.create("1", "mine") is ours
    assert behind.script == []
    assert location.read_text("1") == found


@pytest.mark.slow
def test_answers_that_break_off_are_asked_for_again(behind):
    location = Location("s3://runs/broken")
    data = bytes(range(256)) * 4096
    behind.script = ["503", "500", "cut before", "lost answer"]
    location.write_bytes("file", data)
    behind.script = ["cut within", "503", "cut before"]
    assert location.read_bytes("file") == data
    behind.script = ["cut within"]
    assert location.files() == ["file"]
    assert behind.script == []


@pytest.mark.slow
def test_requests_of_a_run_are_few(behind, tiny_model):
    """A run and each of its units ask an object store for no more than docs/scaling.md says."""
    run = prepare_run(small_study("asked", tiny_model, 10), "s3://runs")
    assert behind.count() <= 375
    for verb, most in (("generate", 54), ("label", 55), ("probe", 43)):
        counts = []
        for unit in UNITS[verb].list_units(run)[:3]:
            behind.count()
            UNITS[verb].carry_out(run.url, *unit.index)
            counts.append(behind.count())
        # The first unit of a process also reads the metadata.
        assert max(counts[1:3]) <= most, (verb, counts)
        assert counts[0] <= 145, (verb, counts)
    assert run.location.size() > 0
    assert behind.count() == 1
