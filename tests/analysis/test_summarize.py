"""Summary of a run, against a loop over its scores."""

import json
import subprocess
import sys

import numpy as np
import pytest
from run_helpers import carry_out
from scipy.stats import spearmanr

from ldmprobe_core.analysis.parts import property_part
from ldmprobe_core.analysis.summarize import summarise
from ldmprobe_core.pipeline.labels import label_set


def test_summary_equals_a_loop_over_the_scores(finished_run):
    record = json.loads(finished_run.location.read_text("summary.json"))
    for prop, head in (("foreground", "dice"), ("depth", "spearman"), ("shading", "spearman")):
        score = finished_run.open(f"scores/{prop}").score.sel(condition="probe", metric=head).load()
        score = score.drop_sel(layer=["latents", "clean_pixels"])  # controls, not layers
        best, best_value = None, -np.inf
        for kind in score.kind.values:
            for step in score.step.values:
                for layer in score.layer.values:
                    here = score.sel(kind=kind, step=step, layer=layer)
                    value = (
                        np.nanmean(
                            np.append(here.values[here.split.values == "validation"], -np.inf)[:-1]
                        )
                        if np.isfinite(here.values[here.split.values == "validation"]).any()
                        else -np.inf
                    )
                    if value > best_value:
                        best, best_value = (str(kind), int(step), str(layer)), value
        found = record["properties"][prop]["best"]
        assert (found["kind"], found["step"], found["layer"]) == best
        here = score.sel(kind=best[0], step=best[1], layer=best[2])
        test = here.values[here.split.values == "test"]
        assert found["score"]["mean"] == pytest.approx(np.nanmean(test))
        assert record["properties"][prop]["undefined"]["best"] == np.isnan(test).sum()
        assert record["properties"][prop]["last"]["step"] == 3


def test_p_value_of_shuffled_labels_compares_with_the_best_cell_of_each_permutation(finished_run):
    record = json.loads(finished_run.location.read_text("summary.json"))
    for prop, result in record["properties"].items():
        group = finished_run.open(f"scores/{prop}").load()
        test = group.split.values == "test"
        best, draws = [], group.shuffled_labels_draws
        for draw in range(20):
            means = [
                np.nanmean(draws.sel(step=step, layer=layer).values[draw, test])
                for step in group.step.values
                for layer in finished_run.layers
            ]
            best.append(max(means))
        observed = result["best"]["score"]["mean"]
        expected = (1 + sum(value >= observed for value in best)) / 21
        assert result["controls"]["shuffled_labels"]["p"] == pytest.approx(expected)


def test_summarise_gives_trajectory_scores_near_1_at_the_last_step(finished_run):
    """s(T) is 1 for labelers that read the finished image, up to float16 storage."""
    findings = summarise(finished_run, {})
    for curves in findings.curves.values():
        last = curves.sources["trajectory"][-1]
        assert np.nanmin(last) > (0.9 if curves.kind == "logistic" else 0.99)


def test_summarise_gives_a_rising_log_snr_of_each_step(finished_run):
    values = summarise(finished_run, {}).summary.log_snr
    assert len(values) == 3
    assert values == sorted(values)


def test_summarise_counts_images_of_one_prompt_as_one_group(tiny_study, tmp_path):
    study = tiny_study(prompts={"items": [f"a ball {i}" for i in range(4)], "samples": 12})
    run = carry_out(study, str(tmp_path))
    samples = summarise(run, {}).summary.samples
    assert samples["total"] == 12
    assert samples["test"] == 3 * samples["test_groups"]


def test_position_is_scored_the_same_in_parts(finished_run, monkeypatch):
    labels = label_set(finished_run)
    test = labels.heldout[1:]
    whole = property_part.position_scores("depth", labels, test)
    monkeypatch.setattr(property_part, "PART_BYTES", 1)  # one sample at a time
    parts = property_part.position_scores("depth", labels, test)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12, equal_nan=True)
    mean, maps = labels.means["depth"].ravel(), labels.maps["depth"]
    by_hand = [spearmanr(mean, maps[i].ravel().astype(float)).statistic for i in test]
    np.testing.assert_allclose(parts[0], by_hand, atol=1e-6)


def test_statistics_need_no_torch(finished_run):
    """Torch takes seconds to load, in both processes of a report."""
    script = (
        "import sys\n"
        "from ldmprobe_core.analysis.summarize import summarise\n"
        "from ldmprobe_core.storage.run import Run\n"
        "summary = summarise(Run(sys.argv[1]), {}).summary\n"
        "assert 'torch' not in sys.modules\n"
        "print(summary.model_dump_json(by_alias=True, include={'properties'}))\n"
    )
    command = [sys.executable, "-c", script, finished_run.url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(finished_run.location.read_text("summary.json"))
    assert json.loads(done.stdout)["properties"] == summary["properties"]
