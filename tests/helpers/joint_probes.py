"""Probes of a vector property or class map with given predictions, in place of those of a run."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from ldmprobe_core.probing.inference.bootstrap import Bootstrap

IS_TEST = np.arange(32) >= 12
"""Which of the held-out samples are test samples."""

BOOTSTRAP = Bootstrap(np.arange(20), 50, 0.95, 0)
"""Bootstrap over the test samples."""

LAYERS = ["a", "b"]

CHOSEN = {"a": 1, "b": 2, "latents": 3}
"""Step of each probe input that validation samples choose; they choose the layer b."""

ERRORS = {
    "a": ([0.5, 1.5, 1.5], [0.1, 0.1, 0.1]),
    "b": ([1.5, 0.1, 1.5], [0.1, 0.8, 0.4]),
    "latents": ([2.5, 2.5, 0.9], [0.2, 1.0, 1.2]),
}
"""Errors of the predictions of validation and of test samples, at three steps of each input.

Test samples would choose another step of every input, and the layer a.
"""

WITHOUT_LATENTS = slice(12, 17)
"""Test samples for which the input control has no predictions."""


def given_tokens(truth: np.ndarray) -> dict[str, np.ndarray]:
    """Add random errors of the sizes `ERRORS` to token labels (held-out sample, y, x, component).

    Returns:
        predictions (step, held-out sample, y, x, component) by input.
    """
    rng, tokens = np.random.default_rng(7), {}
    for name, (of_validation, of_test) in ERRORS.items():
        size = np.where(IS_TEST, np.array(of_test)[:, None], np.array(of_validation)[:, None])
        noise = rng.normal(size=(3, *truth.shape))
        tokens[name] = truth + size[..., None, None, None] * noise
    tokens["latents"][:, WITHOUT_LATENTS] = np.nan
    return tokens


class GivenProbes:
    """Stand-in for `JointProbes`.

    Args:
        parts: names of the components.
        tokens: result of `given_tokens`.
        labels: labels (held-out sample, y, x, component).
        mean: mean label (y, x, component).
        exact: ground-truth maps of the test samples (test sample, y, x, component).
    """

    kind, has_labeler, is_test = "ridge", True, IS_TEST
    run = SimpleNamespace(
        probe_inputs=[*LAYERS, "latents"],
        layers=LAYERS,
        study=SimpleNamespace(labels=SimpleNamespace(maps=())),
    )

    def __init__(
        self,
        parts: tuple[str, ...],
        tokens: dict[str, np.ndarray],
        labels: np.ndarray,
        mean: np.ndarray,
        exact: np.ndarray,
    ) -> None:
        self.parts, self._tokens, self._labels = parts, tokens, labels
        self._mean, self._exact = mean, exact
        self.labels = SimpleNamespace(heldout=np.arange(len(labels)))

    def tokens(self, layer: str) -> Iterator[np.ndarray]:
        yield from self._tokens[layer]

    def truth(self, members: np.ndarray) -> np.ndarray:
        return self._labels[members]

    def mean_map(self) -> np.ndarray:
        return self._mean

    def exact_maps(self) -> np.ndarray:
        return self._exact

    def put_into(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a module use these probes, for the one joint property ``given``."""
        monkeypatch.setattr(module, "JointProbes", lambda *_: self)
        monkeypatch.setattr(module, "joint_properties", lambda *_: {"given": self.parts})
        monkeypatch.setattr(module, "partial_inputs", lambda *_: {})
