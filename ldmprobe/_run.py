"""Class `Run` of the public API: lazy arrays, probes, token streams and exports."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ldmprobe_core.errors import UserError
from ldmprobe_core.storage.lifecycle.reading import reading
from ldmprobe_core.storage.run import Run as StoredRun
from ldmprobe_core.study.layers import CLEAN_PIXELS, matching_layers

if TYPE_CHECKING:
    from ldmprobe.tokens import TokenStream
    from ldmprobe_core.analysis.records import Summary
    from ldmprobe_core.probing.linear import LinearProbe


class Run(StoredRun):
    """Handle of a run: the folder or S3 prefix that holds the results of a study.

    Opening and reading a run imports neither torch nor diffusers.

    Example::

        run = lp.open_run("runs/tabletop-d405ac198a")
        means = run.scores("depth").groupby("split").mean("sample")  # validation, test
        means.sel(split="test", condition="probe", metric="spearman")
    """

    @property
    def summary(self) -> Summary:
        """Main results of the run, which are stored in its file ``summary.json``.

        Raises:
            UserError: the run is not finished.
        """
        from ldmprobe_core.analysis.records import load_summary

        return load_summary(self)

    def reading(self) -> AbstractContextManager[None]:
        """Return a context manager that keeps ``prune`` and schedules from deleting this run.

        Lazy arrays are read when they are computed, so that a run which ``ldmprobe prune`` or a
        schedule deletes meanwhile would be read in part.

        Raises:
            UserError: the run is being deleted; raised on entering the context.

        Example::

            with run.reading():
                means = run.activations(run.layers[0]).mean("sample").compute()
        """
        return reading(f"lp.Run.reading (process {os.getpid()})", self.url)

    def scores(self, prop: str) -> xr.DataArray:
        """Return the scores of every probe and control on the validation and test samples.

        Args:
            prop: property that the study probes, such as ``depth``.

        Returns:
            scores (condition, kind, metric, step, layer, sample) float32, which are read from the
            store when they are used.  A score is NaN if it is undefined or not computed yet; a
            score that was computed and is lost raises a `CorruptChunkError` when it is read.  The
            coordinate ``split`` is "validation" or "test" for each sample.

        Raises:
            UserError: the study does not probe the property.
        """
        self._require_property(prop)
        # The dimensions of scores are (condition, kind, metric, step, layer, sample).  Each unit of
        # probing work writes the scores of one step and layer.  A chunk's indices along step and
        # layer (dimensions 3 and 4, counted from 0) therefore identify the unit that writes it.
        required = self._required_chunks(f"scores/{prop}/score", "probed", 3, 4)
        return self.open(f"scores/{prop}", required).score

    def probe(self, prop: str, step: int, layer: str, kind: str | None = None) -> LinearProbe:
        """Read the linear probe that was fitted at one step of one layer.

        Args:
            prop: property that the probe predicts.
            step: denoising step, counted from 1.
            layer: name of the layer, or its short name in reports, as
                ``mid_block.attentions.0.attn1``.
            kind: one of the study's ``probes.kinds``; None uses the first kind that was fitted to
                the property.

        Returns:
            the probe, with ``weight`` (channel,) float64, ``bias``, ``position`` (y, x), and the
            method ``predict`` for activations (n, y, x, channel); for latents, for the result of
            `ldmprobe_core.probing.neighbourhood.probe_features`.  Where the prediction of a mask
            exceeds ``cut``, it counts as foreground.

        Raises:
            UserError: the step, the layer or the kind is not in the run, or no such probe was
                fitted.
        """
        from ldmprobe_core.probing.linear import LinearProbe

        self._require_property(prop)
        layer = _layer_of(layer, self.probe_inputs)
        group = self.open(f"probes/{layer}", require_complete=False)
        is_number = isinstance(step, (int, np.integer)) and not isinstance(step, bool)
        if not is_number or step not in group.step.values:
            raise UserError(
                f"step: {step!r} is not in the run. Fix: choose a step from 1 to {len(group.step)}"
            )
        if self.progress.is_done("probed", step - 1, self.probe_inputs.index(layer)):
            # The unit of work that fits this probe is complete, so all its chunks must exist.
            # Reopen the group in the mode that raises an error for a missing chunk.
            group = self.open(f"probes/{layer}")
        kinds = [str(name) for name in group.kind.values]
        if kind is not None and kind not in kinds:
            raise UserError(
                f"kind: {kind!r} is not in the run. Fix: choose one of {', '.join(kinds)}"
            )
        for name in [kind] if kind else kinds:
            fitted = group.sel(property=prop, step=step, kind=name).load()
            if np.isfinite(fitted.weight.values).all():
                return LinearProbe.from_dataset(fitted)
        raise UserError(
            f"kind: the run holds no linear probe of {prop} at step {step} of {layer} (kind: "
            f"{kind or 'any'}). Fix: choose another kind, or resume the run until it is finished"
        )

    def activations(self, layer: str) -> xr.DataArray:
        """Return a layer's stored activations as a `DataArray` of lazily read Dask chunks.

        Values are read when they are computed, so that means and other reductions over more
        activations than fit into memory run chunk by chunk.

        Args:
            layer: name of the layer, or its short name in reports.

        Returns:
            activations (sample, step, y, x, channel) as stored; NaN if they are not generated yet.
            The dimension ``sample`` has the coordinates ``prompt``, ``split`` and ``category``,
            which is empty where it is unknown.  With ``capture.keep: statistics`` only held-out
            samples are stored, and ``clean_pixels`` has the samples and steps with step images.
            Lost activations raise a `CorruptChunkError` when they are read.

        Raises:
            UserError: the layer is not in the run.
        """
        layer = _layer_of(layer, self.probe_inputs)
        group, array = f"activations/{layer}", f"activations/{layer}/activation"
        # A chunk of predicted clean pixels holds one sample, any other chunk one batch of samples.
        batch = self.study.sampling.batch
        chunks = self.read(group, "sample")[:: 1 if layer == CLEAN_PIXELS else batch]
        done = self.progress.completed("generated")[chunks // batch]
        activations = self.open(group, _required(array, done, 0)).activation
        samples = [self.samples[int(index)] for index in activations.sample.values]
        known = {
            "prompt": ("sample", [sample.prompt for sample in samples]),
            "split": ("sample", [sample.split for sample in samples]),
            "category": ("sample", [sample.category or "" for sample in samples]),
        }
        stored = activations.encoding["preferred_chunks"]
        values = activations.variable.chunk(stored).data
        return activations.copy(data=values).assign_coords(known)

    def tokens(
        self,
        layer: str,
        steps: int | Sequence[int] | None = None,
        split: str = "train",
        batch: int = 4096,
        seed: int = 0,
        buffer: int = 65_536,
    ) -> TokenStream:
        """Return a shuffled stream of a layer's tokens, for training a sparse autoencoder.

        Args:
            layer: name of a captured layer, or its short name in reports.
            steps: denoising steps, counted from 1; None takes all of them.
            split: ``train``, ``validation`` or ``test``.
            batch: number of tokens in a batch.
            seed: seed of the random order.
            buffer: number of tokens in memory among which the stream draws; a larger buffer
                shuffles better.

        Returns:
            a `torch.utils.data.IterableDataset` of batches (token, channel) float32.  An epoch
            gives each token once, and ``set_epoch`` chooses another order.  Samples are left out
            at the steps at which one of their values is not finite.

        Raises:
            UserError: the layer or a step is not in the run, no activations of the split are
                stored, some are not generated yet, or the buffer is smaller than a batch.

        Example::

            stream = run.tokens(run.layers[0], steps=3)
            loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2)
        """
        from ldmprobe.tokens import TokenStream

        layer = _layer_of(layer, self.layers)
        chosen = [int(steps)] if isinstance(steps, (int, np.integer)) else steps
        return TokenStream(self, layer, chosen, split, batch, seed, buffer)

    def export_scores(self, path: str | Path) -> None:
        """Write the scores of the finished run to a file: ``.csv``, ``.parquet`` or ``.tex``.

        CSV and Parquet have the mean score over the test samples of every cell, with one row for
        each property, metric, kind and condition.  LaTeX has a booktabs table of the best cells
        with their intervals.

        Raises:
            UserError: the suffix is another one, the folder does not exist, the run is not
                finished, or Parquet is asked for without the package pyarrow.

        Example::

            run.export_scores("scores.csv")
        """
        from ldmprobe_core.analysis.exports import export_run_scores

        export_run_scores(self, path)

    def _required_chunks(self, array: str, kind: str, *dims: int) -> Callable[[str], bool]:
        """Return a function that tells from a chunk's key whether an undamaged run has this chunk.

        A chunk of the array must exist if the unit that writes it is complete.

        Args:
            array: path of the array that the units write; every chunk of other arrays must exist.
            kind: name of the units' array in the group ``progress``.
            dims: positions, in the number of a chunk, of the dimensions that number the units.
        """
        return _required(array, self.progress.completed(kind), *dims)

    def _require_property(self, prop: str) -> None:
        if prop not in self.study.labels.maps:
            raise UserError(
                f"property: {prop!r} is not probed by the study. Fix: choose one of "
                f"{', '.join(self.study.labels.maps)}"
            )


def _layer_of(layer: str, choices: Sequence[str]) -> str:
    """Return the name of the one layer that is called so, by its name or short name."""
    found = matching_layers(choices, layer) if isinstance(layer, str) else []
    if layer in choices:
        return layer
    if len(found) != 1:
        problem = f"is {len(found)} layers of the run" if found else "is not in the run"
        raise UserError(
            f"layer: {layer!r} {problem}. Fix: choose one of {', '.join(found or choices)}"
        )
    return found[0]


def _required(array: str, done: np.ndarray, *dims: int) -> Callable[[str], bool]:
    """Return a function that tells from a chunk's key whether an undamaged run has this chunk.

    Args:
        array: path of an array; every chunk of other arrays must exist.
        done: whether the unit that writes a chunk is complete, by the chunk's number along `dims`.
        dims: positions of these dimensions in the number of a chunk.
    """

    def required(key: str) -> bool:
        if not key.startswith(f"{array}/c/"):
            return True
        number = key.rpartition("/c/")[2].split("/")
        return bool(done[tuple(int(number[dim]) for dim in dims)])

    return required
