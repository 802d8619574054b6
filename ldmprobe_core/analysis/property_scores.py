"""Scores of one property over layers and steps: best probes, controls, and curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ldmprobe_core.analysis.controls.ceilings import all_foreground_score
from ldmprobe_core.analysis.controls.coverage import (
    Coverage,
    count_undefined,
    input_control_steps,
    partial_coverage,
)
from ldmprobe_core.analysis.controls.draws import different_draws
from ldmprobe_core.analysis.controls.records import ControlRecord, ControlsRecord, OwnBestRecord
from ldmprobe_core.analysis.controls.training_size import CorrectedDifference
from ldmprobe_core.analysis.curves import Curves, emergence_record, leads_record, step_records
from ldmprobe_core.analysis.generalization.resplits import ResplitCurves
from ldmprobe_core.analysis.nonfinite import undefined_record
from ldmprobe_core.analysis.records import (
    CellRecord,
    ClustersRecord,
    LayerRecord,
    PropertyRecord,
)
from ldmprobe_core.probing.inference.bootstrap import Bootstrap, Interval
from ldmprobe_core.probing.inference.permutation import permutation_p
from ldmprobe_core.probing.inference.selection import choose_layer, ranked_means
from ldmprobe_core.probing.metrics import mean_of_defined
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.conditions import CONDITIONS
from ldmprobe_core.study.layers import INPUT_CONTROLS
from ldmprobe_core.study.probe_kinds import probe_kind
from ldmprobe_core.study.properties import Property, property_of

_Cell = tuple[int, int, int]
"""Indices of a kind of probe, a step and a layer."""


@dataclass(frozen=True)
class PropertyScores:
    """Scores of one property at all layers and steps; validation samples choose the best cell.

    Attributes:
        prop: the property.
        kinds: names of the kinds of probes.
        layers: names of the layers.
        conditions: names of the conditions; the first is the probe itself, the others are controls.
        controls: names of the conditions that the study has switched on, without the probe.
        scores: scores (condition, kind, metric, step, layer, held-out sample) float64.
        inputs: scores of probes of the input controls, such as the latents, by name, (kind, metric,
            step, held-out sample).
        draws: `different_draws` of repeated conditions, by name, (draw, step, layer, held-out
            sample), in the main metric.
        is_test: whether each held-out sample is a test sample, not a validation sample,
            (held-out sample,) bool.
        validation_groups: prompt of each validation sample, (validation sample,).
        bootstrap: bootstrap over the test samples.
        covered: samples of the controls that were computed on a part of them, by name.
        input_steps: indices of the steps (from 0) at which the input controls have values, by name.
    """

    prop: Property
    kinds: list[str]
    layers: list[str]
    conditions: list[str]
    controls: list[str]
    scores: np.ndarray
    inputs: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    is_test: np.ndarray
    validation_groups: np.ndarray
    bootstrap: Bootstrap
    covered: dict[str, Coverage] = field(default_factory=dict)
    input_steps: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(
        cls, run: Run, prop: str, heldout: np.ndarray, is_test: np.ndarray, bootstrap: Bootstrap
    ) -> PropertyScores:
        """Read one property's scores from a finished run.

        Args:
            run: a finished run.
            prop: name of the property.
            heldout: indices of the held-out samples, (held-out sample,).
            is_test, bootstrap: as the attributes.
        """
        group = run.open(f"scores/{prop}")
        scores = run.read(f"scores/{prop}", "score").astype(np.float64)
        conditions = [str(name) for name in group.condition.values]
        controls = [name for name in conditions[1:] if run.study.controls.enabled(name)]
        inputs = run.probe_inputs
        of_layers = [inputs.index(name) for name in run.layers]
        repeated = [name for name in controls if CONDITIONS[name].repeated]
        draws = {name: different_draws(run, prop, name)[:, :, of_layers] for name in repeated}
        samples = run.samples
        return cls(
            prop=property_of(prop),
            kinds=[str(kind) for kind in group.kind.values],
            layers=run.layers,
            conditions=conditions,
            controls=controls,
            scores=scores[..., of_layers, :],
            inputs={
                name: scores[0, :, :, :, inputs.index(name)]
                for name in inputs
                if name in INPUT_CONTROLS
            },
            draws=draws,
            is_test=is_test,
            validation_groups=np.array([samples[i].group for i in heldout[~is_test]]),
            bootstrap=bootstrap,
            covered=partial_coverage(run, heldout),
            input_steps=input_control_steps(run),
        )

    @cached_property
    def linear(self) -> list[int]:
        """Indices of the linear kinds of probes; only these are candidates for the best probe."""
        return [i for i, kind in enumerate(self.kinds) if probe_kind(kind).linear]

    @property
    def all_undefined(self) -> int:
        """Number of undefined main-metric scores of linear probes, over all layers and steps."""
        supporting = [i for i in self.linear if probe_kind(self.kinds[i]).supports(self.prop)]
        of_layers = np.isnan(self.scores[0, supporting, 0]).sum()
        return int(of_layers) + sum(
            count_undefined(one[supporting, 0], self.input_steps.get(name), self.covered.get(name))
            for name, one in self.inputs.items()
        )

    def best(self, condition: int = 0) -> _Cell:
        """Find the best kind, step and layer on validation samples, for the probe or a control."""
        choice = self._validation(self.scores[condition, self.linear, 0])
        kind, step, layer = np.unravel_index(choice.argmax(), choice.shape)
        return self.linear[int(kind)], int(step), int(layer)

    def best_at(self, step: int) -> _Cell:
        """Find the kind and layer with the best validation score at one step (from 0)."""
        choice = self._validation(self.scores[0, self.linear, 0, step])
        kind, layer = np.unravel_index(choice.argmax(), choice.shape)
        return self.linear[int(kind)], step, int(layer)

    def best_of_input(self, name: str) -> tuple[int, int]:
        """Find the best kind and known step of an input control on validation samples."""
        known = self.input_steps.get(name, np.arange(self.inputs[name].shape[2]))
        choice = self._validation(self.inputs[name][self.linear, 0][:, known])
        row, step = np.unravel_index(choice.argmax(), choice.shape)
        return self.linear[int(row)], int(known[step])

    def of(self, cell: _Cell, condition: int = 0) -> np.ndarray:
        """Test scores in all metrics of one kind, step and layer, (metric, test sample)."""
        kind, step, layer = cell
        return self.scores[condition, kind, :, step, layer][:, self.is_test]

    @cached_property
    def tied_layers(self) -> list[str]:
        """Names of the layers whose mean score is within one standard error of the best layer's."""
        return list(dict.fromkeys(self.layers[layer] for _, layer in self._tied_curves))

    def curves(
        self,
        position: np.ndarray,
        sources: dict[str, np.ndarray],
        decoded: np.ndarray | None = None,
        decoded_steps: np.ndarray | None = None,
        resplits: ResplitCurves | None = None,
    ) -> Curves:
        """Collect the test scores over steps of the probe, its controls and the image labeler.

        The probe's curve shows one layer and kind, chosen on validation samples for all steps.

        Args:
            position: scores of the position baseline, (test sample,).
            sources: scores of the image labeler, (step, test sample) by source of the images.
            decoded, decoded_steps: samples and steps with step images, as in `Curves`; None: all.
            resplits: curves of re-splits with the candidates `tied_layers`; None if there are none.
        """
        choices = resplits.choices if resplits else {}
        # `_tied_curves` is sorted by validation score, best first, and `max` returns the first of
        # equal candidates.  Of layers that equally many re-splits choose, the best one is taken.
        kind, layer = max(self._tied_curves, key=lambda c: choices.get(self.layers[c[1]], 0))
        name, tied = self.layers[layer], self.tied_layers
        over_steps = self.scores[:, kind, 0, :, layer][..., self.is_test]
        best_kind, other = self.best()[0], self.prop.metrics.index(self.prop.compared[-1])
        return Curves(
            probe=over_steps[0],
            conditions={
                name: over_steps[i]
                for i, name in enumerate(self.conditions)
                if name in self.controls
            },
            sources=sources,
            position=position,
            inputs={name: self._input_curve(name, 0) for name in self.inputs},
            compared=self.scores[0, kind, other, :, layer][..., self.is_test],
            inputs_compared={name: self._input_curve(name, other) for name in self.inputs},
            cells=mean_of_defined(self.scores[0, best_kind, 0][..., self.is_test]),
            kind=self.kinds[best_kind],
            layer=LayerRecord(name=name, kind=self.kinds[kind], tied=tied, resplits=choices),
            decoded=np.ones(len(position), bool) if decoded is None else decoded,
            decoded_steps=np.arange(len(over_steps[0])) + 1
            if decoded_steps is None
            else decoded_steps,
            resplits=resplits,
        )

    def to_record(
        self,
        position: np.ndarray,
        without_cells: dict[str, np.ndarray],
        curves: Curves,
        truth: np.ndarray | None,
        missing: float,
        ceilings: dict[str, float | None],
        corrected: dict[str, CorrectedDifference] | None = None,
    ) -> PropertyRecord:
        """Build the property's part of ``summary.json``.

        Args:
            position: scores of the position baseline, (metric, test sample).
            without_cells: scores of the controls that have no cells, such as the prompt control,
                (metric, test sample) by name.
            curves: result of the method `curves`.
            truth: labels of the test samples, (test sample, y, x), of a mask; else None.
            missing: fraction, 0..1, of the labels' pixels that were not measured.
            ceilings: result of `controls.ceilings.block_ceilings`.
            corrected: differences between the best cell and the own best cells of controls, by
                name, where they are corrected or the probe is fitted to fewer samples.
        """
        best = self.best()
        scores = self.of(best)[0]
        choice = self._validation(self.scores[0, self.linear, 0])
        undefined = undefined_record(scores, self.all_undefined, truth, choice)
        emergence = emergence_record(curves, self.bootstrap)
        records = self._controls(best, position, without_cells, corrected or {})
        return PropertyRecord(
            best=self._cell(best),
            last=self._cell(self.best_at(self.scores.shape[3] - 1)),
            layer=curves.layer,
            steps=step_records(curves, self.prop.compared[-1], self.bootstrap),
            emergence=emergence,
            leads=leads_record(curves, emergence, self.bootstrap),
            clusters=ClustersRecord(
                prompts=self.bootstrap.groups,
                categories=self.bootstrap.categories,
                wider=self.bootstrap.wider(scores),
                few_categories=self.bootstrap.few_categories,
            ),
            controls=records,
            not_beyond=records.not_exceeded(),
            ceilings=ceilings,
            constant=None if truth is None else all_foreground_score(truth),
            undefined=undefined,
            missing=missing,
        )

    def _validation(self, scores: np.ndarray) -> np.ndarray:
        """Average scores (..., held-out sample) over validation samples, to rank the cells."""
        return ranked_means(scores[..., ~self.is_test])

    @cached_property
    def _tied_curves(self) -> list[tuple[int, int]]:
        """Index pairs (kind, layer) with a validation score within one standard error of the best.

        The score of a pair is its mean over steps and prompts.  The best pair comes first.
        """
        # Reorder the axes to (step, kind, layer, validation sample).
        scores = self.scores[0, self.linear, 0][..., ~self.is_test].swapaxes(0, 1)
        candidates = [(kind, layer) for kind in self.linear for layer in range(len(self.layers))]
        scores = scores.reshape(len(scores), len(candidates), -1)
        choice = choose_layer(scores, self.validation_groups)
        return [candidates[i] for i in choice.tied]

    def _input_curve(self, name: str, metric: int) -> np.ndarray:
        """Test scores of probes of latents or clean pixels at every step, (step, test sample)."""
        steps = range(self.inputs[name].shape[2])
        return np.stack([self._input_at(name, step)[metric] for step in steps])

    def _input_at(self, name: str, step: int) -> np.ndarray:
        """Test scores of probes of latents or clean pixels at one step, (metric, test sample).

        The linear kind is used whose probes have the best validation score.
        """
        scores = self.inputs[name]
        choice = self._validation(scores[self.linear, 0, step])
        return scores[self.linear[int(choice.argmax())], :, step][:, self.is_test]

    def _controls(
        self,
        best: _Cell,
        position: np.ndarray,
        without_cells: dict[str, np.ndarray],
        corrected: dict[str, CorrectedDifference],
    ) -> ControlsRecord:
        """Summarise all controls; disabled controls are None or absent."""
        probe, step = self.of(best)[0], best[1]
        found: dict[str, ControlRecord | None] = {"shuffled_labels": None, "permuted_weights": None}
        for name, scores in ({"position": position} | without_cells).items():
            everywhere = OwnBestRecord(score=self.bootstrap.interval(scores[0]))
            known = self.bootstrap.accompanied if name == "same_prompt" else None
            found[name] = self._control(probe, scores, everywhere, scores[0], computed=known)
        for name, scores in self.inputs.items():
            kind, own_step = self.best_of_input(name)
            own = scores[kind, 0, own_step, self.is_test]
            record = self._own_best(own, (kind, own_step, name))
            part = corrected.get(name), self.covered.get(name)
            known = np.full(len(probe), step in self.input_steps.get(name, [step]))
            found[name] = self._control(
                probe, self._input_at(name, step), record, own, *part, computed=known
            )
        for i, kind_name in enumerate(self.kinds):
            if i not in self.linear and probe_kind(kind_name).supports(self.prop):
                choice = self._validation(self.scores[0, i, 0])
                best_step, layer = np.unravel_index(choice.argmax(), choice.shape)
                cell = i, int(best_step), int(layer)
                own = self.of(cell)[0]
                same = self.of((i, *best[1:]))
                found[kind_name] = self._control(probe, same, self._own_best(own, cell), own)
        for i, name in enumerate(self.conditions):
            if name in self.controls:
                cell = self.best(i)
                own = self.of(cell, i)[0]
                part = corrected.get(name), self.covered.get(name)
                same, record = self.of(best, i), self._own_best(own, cell)
                control = self._control(probe, same, record, own, *part)
                if name in self.draws:
                    control.p = permutation_p(probe, self.draws[name][..., self.is_test])
                found[name] = control
        return ControlsRecord.model_validate(found)

    def _own_best(self, scores: np.ndarray, cell: tuple[int, int, int | str]) -> OwnBestRecord:
        kind, step, layer = cell
        return OwnBestRecord(
            step=step + 1,
            layer=layer if isinstance(layer, str) else self.layers[layer],
            kind=self.kinds[kind],
            score=self.bootstrap.interval(scores),
        )

    def _control(
        self,
        probe: np.ndarray,
        same: np.ndarray,
        own: OwnBestRecord,
        own_scores: np.ndarray,
        corrected: CorrectedDifference | None = None,
        covered: Coverage | None = None,
        computed: np.ndarray | None = None,
    ) -> ControlRecord:
        """Summarise a control's scores, and their difference to the probe's scores.

        Args:
            probe: headline scores of the probe's best cell, (test sample,).
            same: scores of the control in that cell, (metric, test sample).
            own: record of the control's own best cell.
            own_scores: headline scores of the control in its own best cell, (test sample,).
            corrected: difference to them, if it was corrected for the training samples.
            covered: samples of the control, if they are a part of all.
            computed: whether each of these was to have a score in that cell, (test sample,) bool.
        """
        counted = np.isnan(same[0]) if computed is None else np.isnan(same[0]) & computed
        counted = counted if covered is None else counted & covered.heldout[self.is_test]
        difference = corrected or CorrectedDifference(probe - own_scores, 0.0)
        return ControlRecord(
            same_cell=self.bootstrap.interval(same[0]),
            own_best=own,
            difference=self.bootstrap.interval(difference.values, difference.error),
            p=self.bootstrap.p_value(difference.values, difference.error),
            partial=self._partial(same),
            undefined=int(counted.sum()),
            samples=None if covered is None else covered.counts,
        )

    def _partial(self, values: np.ndarray) -> Interval | None:
        name = self.prop.partial_metric
        return self.bootstrap.interval(values[self.prop.metrics.index(name)]) if name else None

    def _cell(self, cell: _Cell) -> CellRecord:
        kind, step, layer = cell
        values = self.of(cell)
        return CellRecord(
            step=step + 1,
            layer=self.layers[layer],
            kind=self.kinds[kind],
            metric=self.prop.metrics[0],
            score=self.bootstrap.interval(values[0]),
            partial=self._partial(values),
            other={
                name: self.bootstrap.interval(score)
                for name, score in zip(self.prop.metrics[1:], values[1:], strict=True)
            },
        )
