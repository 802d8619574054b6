"""Cost of probing a cell, compared with a lower bound and with scikit-learn.

    python benchmarks/probing.py

The lower bound reads the cell's bytes from disk once, and makes one symmetric rank-k update in BLAS
with them, as float64.  It is compared with reading a cell from a store and fitting its ridge probes
of all properties and penalties.  scikit-learn fits the same penalties to the same tokens.  For a
soft label, `LogisticRegression` gets each token twice, as foreground and as background, with the
shares as weights.  All computations use one BLAS thread.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from benchmarks.capture import peak_beyond
from benchmarks.figures import Figure, report
from ldmprobe_core.probing.block_scores import BlockScorer, FullResolutionLabels, upsample
from ldmprobe_core.probing.fitters.logistic import (
    LogisticPath,
    SoftLabels,
    fit_logistic,
    logistic_loss,
)
from ldmprobe_core.probing.fitters.ridge import RidgePath, fit_ridge
from ldmprobe_core.probing.metrics import score_maps
from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.storage.run import Run

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

CELLS = {
    "64 channels": (108, 16, 64),
    "320 channels": (64, 32, 320),
    "1280 channels": (64, 16, 1280),
}
"""Training images, tokens across, channels: one of the embedded model, two of Stable Diffusion."""


def fastest(work: Callable[[], object], rounds: int = 5) -> float:
    """Time some work: return the seconds of the fastest of several rounds."""
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def cell(images: int, side: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw noisy activations (image, y, x, channel) float16, and three labels of each token."""
    rng = np.random.default_rng(0)
    strong = rng.normal(size=(images, side, side, 8)) * np.geomspace(4, 0.5, 8)
    x = strong @ rng.normal(size=(8, channels)) + rng.normal(size=(images, side, side, channels))
    signal = strong @ rng.normal(size=(8, 2)) + rng.normal(0, 2, (images, side, side, 2))
    share = 1 / (1 + np.exp(-signal[..., 0] + 2))
    return x.astype(np.float16), np.stack([share, signal[..., 0], signal[..., 1]], axis=-1)


def measure() -> list[Figure]:
    """Measure fitting and scoring of probes on synthetic cells."""
    threadpool_limits(1, user_api="blas")
    torch.set_num_threads(1)
    figures = []
    for name, shape in CELLS.items():
        x, y = cell(*shape)
        figures += _against_the_least(name, x, y)
    x, y = cell(*CELLS["64 channels"])
    figures += _against_scikit_learn(x, y)
    figures += _scoring()
    return figures


def _against_the_least(name: str, x: np.ndarray, y: np.ndarray) -> list[Figure]:
    """Compare the ridge probes of a cell with the lower bound of their cost."""
    labels, channels = y.reshape(-1, y.shape[-1]), x.shape[-1]
    with tempfile.TemporaryDirectory() as folder:
        run, file = _stored(folder, x), Path(folder) / "cell.npy"
        np.save(file, x)

        def least() -> object:
            rows = np.load(file).reshape(-1, channels).astype(np.float64)
            return dsyrk(1.0, rows.T)

        validation = SufficientStatistics.from_tokens(
            x[:8].reshape(-1, channels), labels[: 8 * x.shape[1] * x.shape[2]]
        )

        def ours() -> object:
            rows = run.read("activations/layer", "activation", step=0).reshape(-1, channels)
            return fit_ridge(
                RidgePath.from_statistics(SufficientStatistics.from_tokens(rows, labels)),
                validation,
                PENALTIES,
            )

        ratio = fastest(ours) / fastest(least)
        rows = run.read("activations/layer", "activation", step=0).reshape(-1, channels)
        moments = SufficientStatistics.from_tokens(rows, labels)
        penalties = fastest(
            lambda: fit_ridge(RidgePath.from_statistics(moments), validation, PENALTIES)
        )
        share = penalties / fastest(least)
    note = f"{len(labels):,} tokens; of it {share:.2f} solving for six penalties"
    return [
        Figure("probes", f"ridge of a cell, {name} / the least", ratio, "x", at_most=1.5, note=note)
    ]


def _stored(folder: str, x: np.ndarray) -> Run:
    """Write a cell to a store as a run does, in chunks of 16 images."""
    import zarr

    from ldmprobe_core.storage.group_builder import GroupBuilder

    run = Run(f"{folder}/run")
    arrays = GroupBuilder(zarr.create_group(run.store))
    group = arrays.group("activations/layer", "a cell")
    sizes = dict(
        zip(("sample", "step", "y", "x", "channel"), (len(x), 1, *x.shape[1:]), strict=True)
    )
    arrays.array(
        group, "activation", sizes, {"sample": 16, "step": 1}, "float16", "values", compress=False
    )
    run.write("activations/layer", {"activation": x[:, None]})
    return run


def _against_scikit_learn(x: np.ndarray, y: np.ndarray) -> list[Figure]:
    """Compare ridge and logistic probes with those of scikit-learn, in time and result."""
    channels, cut = x.shape[-1], 36 * x.shape[1] * x.shape[2]
    rows, labels = x.reshape(-1, channels), y.reshape(-1, y.shape[-1])
    train, validation = rows[cut:], rows[:cut]
    wide, heldout = train.astype(np.float64), validation.astype(np.float64)
    path = RidgePath.from_statistics(SufficientStatistics.from_tokens(train, labels[cut:]))

    def ours() -> list:
        here = RidgePath.from_statistics(SufficientStatistics.from_tokens(train, labels[cut:]))
        return fit_ridge(
            here, SufficientStatistics.from_tokens(validation, labels[:cut]), PENALTIES
        )

    def theirs() -> list[Ridge]:
        best = []
        for column in range(labels.shape[1]):
            fits = [Ridge(alpha=p * path.unit * len(wide)).fit(wide, labels[cut:, column])
                    for p in PENALTIES]  # fmt: skip
            errors = [((f.predict(heldout) - labels[:cut, column]) ** 2).mean() for f in fits]
            best.append(fits[int(np.argmin(errors))])
        return best

    gap = max(float(np.abs(a.weight - b.coef_).max() / np.abs(b.coef_).max())
              for a, b in zip(ours(), theirs(), strict=True))  # fmt: skip
    figures = [
        Figure("probes", "ridge: scikit-learn / ours", fastest(theirs, 3) / fastest(ours, 3), "x",
               note="3 labels, 6 penalties, arrays in memory"),
        Figure("probes", "ridge: greatest difference of weights", gap, "", at_most=1e-4),
    ]  # fmt: skip

    share = labels[:, 0]

    def our_logistic() -> object:
        labels = SoftLabels(train, share[cut:]), SoftLabels(validation, share[:cut])
        return fit_logistic(*labels, PENALTIES, path, 0)

    twice = np.concatenate([wide, wide])
    target = np.repeat([1, 0], len(wide))
    weight = np.concatenate([share[cut:], 1 - share[cut:]])

    def one(penalty: float, tolerance: float) -> LogisticRegression:
        model = LogisticRegression(
            C=1 / (penalty * path.unit * len(wide)), tol=tolerance, max_iter=10_000
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(twice, target, sample_weight=weight)

    def their_logistic() -> object:
        fits = [one(penalty, 1e-6) for penalty in PENALTIES]
        return [logistic_loss(chosen, f.coef_[0], f.intercept_[0]) for f in fits]

    chosen = SoftLabels(heldout, share[:cut])
    start = np.zeros(channels), 0.0
    fits = LogisticPath(SoftLabels(train, share[cut:]))
    gaps = []
    for penalty in PENALTIES:
        w, _ = fits.solve(penalty * path.unit, start)
        exact = one(penalty, 1e-10)
        scale = np.abs(exact.coef_[0]).max()
        gaps.append(float(np.abs(w - exact.coef_[0]).max() / scale))
    figures += [
        Figure("probes", "logistic: scikit-learn / ours",
               fastest(their_logistic, 1) / fastest(our_logistic, 3), "x",
               note="6 penalties; lbfgs, tolerance 1e-6"),
        Figure("probes", "logistic: greatest difference of weights", max(gaps), "", at_most=1e-4,
               note="against lbfgs at tolerance 1e-10"),
        Figure("probes", "logistic: passes over the tokens a penalty",
               fits.passes / len(PENALTIES), "", note="each from zero; along a path fewer"),
    ]  # fmt: skip
    return figures


def _scoring() -> list[Figure]:
    """Compare scoring by blocks with scoring of upsampled maps, in time and result."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(16, 512, 512)).astype(np.float32)
    mean_map, tokens = truth.mean(0, dtype=np.float64), rng.normal(size=(16, 64, 64))
    full = FullResolutionLabels(truth)
    blocks = BlockScorer("depth", truth, mean_map, (64, 64), full)
    plain = lambda: score_maps("depth", upsample(tokens, (512, 512)), truth, mean_map, (64, 64))  # noqa: E731
    gap = float(np.abs(blocks.scores(tokens) - plain()).max())
    ratio = fastest(plain, 2) / fastest(lambda: blocks.scores(tokens), 2)
    return [
        *_many_held_out(),
        Figure("scores", "at 512 x 512: plainly / by blocks", ratio, "x",
               note="16 images, five metrics"),
        Figure("scores", "greatest difference", gap, "", at_most=1e-9),
    ]  # fmt: skip


def _many_held_out() -> list[Figure]:
    """Measure the memory to prepare the labels of 371 images, and to score a cell against them.

    Labels are ranked when the first cell is scored, which therefore belongs to the preparation.
    """
    rng = np.random.default_rng(0)
    count, grid = 371, (64, 64)
    truth = rng.normal(size=(count, 512, 512)).astype(np.float32)
    mean_map = truth.mean(0, dtype=np.float64)
    kept: list[BlockScorer] = []

    def prepare() -> None:
        kept.append(BlockScorer("depth", truth, mean_map, grid))
        score()

    def score() -> None:
        kept[0].scores(rng.normal(size=(count, *grid)))

    preparing, scoring = peak_beyond(prepare), peak_beyond(score)
    note = "371 images of 512 x 512, one property, 64 x 64 tokens"
    return [
        Figure("scores", "memory to prepare labels / their bytes", preparing / truth.nbytes, "x",
               note=note),
        Figure("scores", "memory to score a cell / the labels' bytes", scoring / truth.nbytes, "x",
               at_most=1, note="full-size float64 predictions alone would be 2"),
    ]  # fmt: skip


if __name__ == "__main__":
    report(measure())
