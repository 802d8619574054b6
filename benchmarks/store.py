"""Speed of chunk layouts, codecs and clients, on a local disk and in an object store.

    python benchmarks/store.py

One layer of the embedded model at 15 steps, 64 samples (31 MB, random bytes: activations compress
by a tenth at most), written batch by batch as generation does and read cell by cell as probes do.
Against it, on the disk, `numpy.save` and `numpy.load` of the same bytes; in the store (SeaweedFS on
this machine), AWS's own client (botocore) moving the same chunks by as many threads as it likes
best.  A layout's figures are its megabytes a second over those.  What a sharded layout cannot do is
be written step by step while generation goes on: its shards are whole batches.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import botocore.session
import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec

from benchmarks.figures import Figure, plain_study, report, without_controls
from infra.local_store import object_store
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.stores.object_store import open_store
from ldmprobe_core.storage.stores.s3_client import CLIENT

SHAPE = (64, 15, 16, 16, 64)  # sample, step, y, x, channel
BATCH, ROUNDS = 16, 3


@dataclass(frozen=True)
class ChunkLayout:
    """Sizes of chunks, and of shards if any, along samples and steps."""

    name: str
    chunk: tuple[int, int]
    shard: tuple[int, int] | None = None
    zstd: bool = False

    def create(self, store: Store, path: str) -> zarr.Array:
        """Create an empty array with this layout."""
        codecs = (ZstdCodec(level=1), Crc32cCodec()) if self.zstd else (Crc32cCodec(),)
        array = zarr.create_array(
            store, name=path, shape=SHAPE, dtype="float16", fill_value=np.nan, overwrite=True,
            chunks=(*self.chunk, *SHAPE[2:]), compressors=codecs,
            shards=None if self.shard is None else (*self.shard, *SHAPE[2:]),
        )  # fmt: skip
        return array

    @property
    def objects(self) -> int:
        """Number of objects from which one cell is read."""
        return SHAPE[0] // (self.shard or self.chunk)[0]


LAYOUTS = (
    ChunkLayout("batch x step (ours)", (BATCH, 1)),
    ChunkLayout("the same, zstd", (BATCH, 1), zstd=True),
    ChunkLayout("sample x step", (1, 1)),
    ChunkLayout("batch x 5 steps", (BATCH, 5)),
    ChunkLayout("batch x step in shards of a batch", (BATCH, 1), (BATCH, 15)),
)


def measure() -> list[Figure]:
    """Measure all layouts on disk and in an object store."""
    data = np.random.default_rng(0).integers(0, 1 << 14, SHAPE, dtype=np.uint16).view(np.float16)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        plain = _plain_files(Path(folder) / "plain", data)
        for layout in LAYOUTS:
            figures += _of_layout("disk", layout, open_store(f"{folder}/zarr"), data, plain)
        with _object_store(Path(folder) / "s3"):
            raw = _raw_client(data)
            for layout in LAYOUTS:
                figures += _of_layout("S3", layout, open_store("s3://runs/zarr"), data, raw)
            figures += _clients()
    return figures


@contextmanager
def _object_store(folder: Path) -> Iterator[None]:
    """Run an object store, and have this process use it, during a block."""
    with object_store(folder) as environment, mock.patch.dict(os.environ, environment):
        yield


def _fastest(work: Callable[[], object]) -> float:
    """Time some work: return the seconds of the fastest of several rounds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _plain_files(folder: Path, data: np.ndarray) -> tuple[float, float]:
    """Return the seconds to save and to load the same bytes as one NPY file per batch and step."""
    folder.mkdir()
    names = [(a, s, folder / f"{a}-{s}.npy") for a in range(0, SHAPE[0], BATCH) for s in range(15)]
    write = _fastest(lambda: [np.save(f, data[a : a + BATCH, s]) for a, s, f in names])
    return write, _fastest(lambda: [np.load(file) for _, _, file in names])


def _raw_client(data: np.ndarray) -> tuple[float, float]:
    """Return the seconds to put and to get the chunks by botocore, on the best thread number."""
    client = botocore.session.get_session().create_client(
        "s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1"
    )
    bodies = [
        data[a : a + BATCH, s].tobytes() for a in range(0, SHAPE[0], BATCH) for s in range(15)
    ]
    best = [float("inf"), float("inf")]

    def put(i: int) -> None:
        client.put_object(Bucket="runs", Key=f"raw/{i}", Body=bodies[i])

    def get(i: int) -> None:
        client.get_object(Bucket="runs", Key=f"raw/{i}")["Body"].read()

    for threads in (1, 2, 4, 8, 16):
        with ThreadPoolExecutor(threads) as pool:
            for i, work in enumerate((put, get)):
                took = _fastest(lambda work=work: list(pool.map(work, range(len(bodies)))))
                best[i] = min(best[i], took)
    return best[0], best[1]


def _of_layout(
    where: str, layout: ChunkLayout, store: Store, data: np.ndarray, raw: tuple[float, float]
) -> list[Figure]:
    """Measure writing by batch and reading by cell with a layout, relative to the seconds `raw`."""
    array = layout.create(store, layout.name.replace(" ", "-"))

    def write() -> None:
        steps = (layout.shard or layout.chunk)[1]
        for a in range(0, SHAPE[0], BATCH):
            for s in range(0, 15, steps):
                array[a : a + BATCH, s : s + steps] = data[a : a + BATCH, s : s + steps]

    def read() -> None:
        for s in range(15):
            array[:, s]

    plain = "numpy" if where == "disk" else "botocore"
    figures = []
    for i, (verb, work) in enumerate((("writing", write), ("reading", read))):
        took = _fastest(work)
        note = f"{data.nbytes / 1e6 / took:.0f} MB/s"
        if verb == "reading":
            note += f", {layout.objects} objects a cell"
        name = f"{where}, {layout.name}: {verb}, speed over {plain}"
        figures.append(Figure("store", name, raw[i] / took, "x", note=note))
    return figures


def _clients() -> list[Figure]:
    """Compare the clients s3fs and obstore: write and read a study's activations with each."""
    study = without_controls(plain_study(64, 15))
    seconds = {}
    for client in ("s3fs", "obstore"):
        with mock.patch.dict(os.environ, {CLIENT: client}):
            run = prepare_run(study, f"s3://runs/{client}")
            seconds[client] = _fastest(lambda run=run: _through(run))
    return [
        Figure("store", "S3, a study's activations written and read: s3fs / obstore",
               seconds["s3fs"] / seconds["obstore"], "x", at_least=1.3,
               note="64 samples, 7 layers; the goal is what makes obstore the default")
    ]  # fmt: skip


def _through(run: Run) -> None:
    """Write all activations of a run by batch, and read them by cell."""
    rng = np.random.default_rng(0)
    for name in run.layers:
        shape = run.open(f"activations/{name}").activation.shape
        values = rng.integers(0, 1 << 14, (BATCH, *shape[1:]), dtype=np.uint16).view(np.float16)
        for a in range(0, shape[0], BATCH):
            part = slice(a, a + BATCH)
            run.write(f"activations/{name}", {"activation": values}, sample=part)
        for step in range(15):
            run.read(f"activations/{name}", "activation", step=step)


if __name__ == "__main__":
    report(measure())
