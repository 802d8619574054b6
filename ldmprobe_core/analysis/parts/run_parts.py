"""Parts of a run's statistics, which can be computed in any order and by any process."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ldmprobe_core.analysis.controls.rivals import rival_scores
from ldmprobe_core.analysis.generalization.build import CurveCell, layer_analyses
from ldmprobe_core.analysis.generalization.records import AnalysesRecord
from ldmprobe_core.analysis.generalization.resplits import RunResplits
from ldmprobe_core.analysis.parts.property_part import PropertyPart
from ldmprobe_core.analysis.property_scores import PropertyScores
from ldmprobe_core.analysis.run_analysis import test_bootstrap
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.probing.inference.bootstrap import Bootstrap
from ldmprobe_core.probing.label_set import LabelSet
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.schema import Study

Message = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Record for JSON and arrays by name, which one process sends to another."""


_TORCH_KINDS = {"adam", "mlp"}
"""Built-in kinds of probes that torch fits."""


@contextmanager
def one_thread(study: Study) -> Iterator[None]:
    """Limit torch and BLAS to one CPU thread inside a ``with`` block.

    The matrices are small.  With several threads, BLAS and torch would spend most of the time on
    waiting for each other, up to 20 times as much as on computing on a busy machine.

    Args:
        study: study whose statistics are computed in the block.
    """
    # Torch takes seconds to load, so it is loaded only for kinds of probes that need it.  A library
    # that was loaded inside the block would not be limited.
    if _TORCH_KINDS & set(study.probes.kinds):
        import torch  # noqa: F401
    torch_module = sys.modules.get("torch")
    threads = torch_module.get_num_threads() if torch_module else 0
    if torch_module:
        torch_module.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        if torch_module:
            torch_module.set_num_threads(threads)


class RunParts:
    """Parts of a run's statistics.

    A part is named by its kind and the layer or property that it is about.  Its numbers depend on
    the run alone, so it does not matter which process computes it.

    Args:
        run: finished run.
        labels: label maps and splits of the run.
        is_test: whether each held-out sample is a test sample, (held-out sample,) bool.
        bootstrap: bootstrap over the test samples.

    Attributes:
        study: study of the run.
        scores: scores in all cells by property.
        resplits: re-splits of the run's prompts.
    """

    def __init__(
        self, run: Run, labels: LabelSet, is_test: np.ndarray, bootstrap: Bootstrap
    ) -> None:
        self.study = run.study
        self._run, self._labels, self._is_test, self._bootstrap = run, labels, is_test, bootstrap
        self.scores = {
            prop: PropertyScores.read(run, prop, labels.heldout, is_test, bootstrap)
            for prop in run.study.labels.maps
        }
        for prop, scores in self.scores.items():
            # Runs of earlier versions store scores there.
            if labels.constant(prop) is not None:
                for one in (scores.scores, *scores.inputs.values(), *scores.draws.values()):
                    one[..., is_test] = np.nan
        candidates = {prop: scores.tied_layers for prop, scores in self.scores.items()}
        self.resplits = RunResplits(run, labels, candidates, labels.heldout[is_test])

    def compute(self, job: dict[str, Any]) -> Any:
        """Compute one part.

        Args:
            job: its ``kind``, and the ``name`` of a layer or property; for rivals also the
                ``source`` of the images, and for analyses ``cells``, the fields of `CurveCell` of
                each property.

        Returns:
            for ``resplits`` the result of `RunResplits.scores`, for ``rivals`` that of
            `rival_scores`, for ``property`` a `PropertyPart`, for ``analyses`` records by property.
        """
        name = job["name"]
        if job["kind"] == "resplits":
            return self.resplits.scores(name)
        if job["kind"] == "rivals":
            test, steps = self._labels.heldout[self._is_test], self.scores[name].scores.shape[3]
            return rival_scores(self._run, name, job["source"], self._labels, test, steps)
        if job["kind"] == "property":
            return PropertyPart.compute(self._run, self.scores[name], self._labels, self._is_test)
        cells = [CurveCell(**cell) for cell in job["cells"]]
        scores = [self.scores[cell.prop] for cell in cells]
        return layer_analyses(self._run, self._labels, self._bootstrap, name, cells, scores)


def part_to_message(job: dict[str, Any], part: Any) -> Message:
    """Return a part, the result of `RunParts.compute`, as another process can send it."""
    if job["kind"] == "resplits":
        return {}, {
            f"{name}/{prop}": one
            for prop, both in part.items()
            for name, one in zip(("test", "validation"), both, strict=True)
        }
    if job["kind"] == "rivals":
        return {}, part
    if job["kind"] == "property":
        return PropertyPart.to_message(part)
    return {
        prop: record.model_dump(mode="json", by_alias=True) for prop, record in part.items()
    }, {}


def part_of_message(job: dict[str, Any], message: Message) -> Any:
    """Build the part that a job names from the result of `part_to_message`."""
    record, arrays = message
    if job["kind"] == "resplits":
        props = [name.removeprefix("test/") for name in arrays if name.startswith("test/")]
        return {prop: (arrays[f"test/{prop}"], arrays[f"validation/{prop}"]) for prop in props}
    if job["kind"] == "rivals":
        return arrays
    if job["kind"] == "property":
        return PropertyPart.from_message(record, arrays)
    return {prop: AnalysesRecord.model_validate(one) for prop, one in record.items()}


@lru_cache(maxsize=1)
def _parts_of(url: str) -> RunParts:
    """Return the parts of a run; a second process is asked about one run in its life."""
    run = Run(url)
    labels = label_set(run)
    bootstrap, is_test = test_bootstrap(run, labels)
    return RunParts(run, labels, is_test, bootstrap)


def part_answer(url: str, part: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Compute one part of a run's statistics in a second process.

    Args:
        url: folder of a finished run.
        part: part to compute, as `RunParts.compute` takes it.

    Returns:
        record for JSON, and arrays in NumPy's format ``npz``.
    """
    parts = _parts_of(url)
    with one_thread(parts.study):
        record, arrays = part_to_message(part, parts.compute(part))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return record, buffer.getvalue()


def nothing() -> tuple[dict[str, Any], bytes]:
    """Return an empty answer; a job of this function loads the libraries of this module."""
    return {}, b""
