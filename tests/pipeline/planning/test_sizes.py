"""Sizes of a plan of sums."""

from run_helpers import statistics_study

from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.study.loading import load_study


def test_sizes_of_statistics_do_not_grow_with_training_samples(tiny_model):
    """Every array is as large for 24 samples as for 4,098, but for the table of samples."""
    few, many = (
        plan_study(statistics_study(tiny_model, "statistics", n, sampling={"batch": 3}))
        for n in (24, 4098)
    )
    assert few.largest_batch == many.largest_batch  # with as many samples left over
    assert few.bytes_of["statistics"] == many.bytes_of["statistics"]
    assert few.n_stored <= many.n_stored <= 2 * few.n_stored  # prompts are held out whole
    assert few.memory == many.memory


def test_sizes_of_statistics_are_planned_without_weights():
    """Stable Diffusion 1.4 by its configs: 240 cells of 320 to 1,280 channels."""
    study = load_study("paper", ["prompts.files=null", "prompts.set=objects", "prompts.samples=900",
                                 "capture.keep=statistics", "capture.accumulators=3",
                                 "probes.kinds=[ridge]", "probes.split.heldout=120",
                                 "controls.permuted_weights=false",
                                 "controls.latents=false"])  # fmt: skip
    plan = plan_study(study)
    widths = [
        c + 1 + 3 * 21 for c, layers in ((320, 5), (640, 5), (1280, 6)) for _ in range(layers)
    ]
    # Of the layers of 1,280 channels, five have 16 x 16 tokens and one has 8 x 8.
    positions = [256] * 15 + [64]
    sums = [w * (w + 1) // 2 + p * w for w, p in zip(widths, positions, strict=True)]
    cells = sum(sums) * 8 * 15
    assert plan.bytes_of["statistics"] == 3 * 2 * cells
    assert plan.memory["statistics"] == cells
    assert 120 <= plan.n_stored < 240
    assert plan.bytes_of["activations"] == plan.n_stored * 15 * 11_550_720 * 2


def test_sizes_without_prompt_files_count_the_samples_that_the_settings_ask_for(tmp_path):
    """617 samples, of which 160 have the permuted twin and 64 + 32 + 6 have step images.

    The share of validation samples, 0.06, is 6/34 of that of training samples, so that the 32
    training samples with step images are joined by 5.6 of validation.
    """
    plan = plan_study(load_study("paper", [f"prompts.files={tmp_path / 'none.csv'}"]))
    assert plan.samples == ()
    assert (plan.count, plan.stored.permuted, plan.stored.step_images) == (617, 160, 102)
    assert plan.bytes_of["activations_permuted"] == 160 * 15 * 11_550_720 * 2
    assert round(plan.bytes / 1e9) == 280


def test_samples_of_the_settings_are_never_more_than_those_of_the_study(tmp_path):
    none = f"prompts.files={tmp_path / 'none.csv'}"
    few = plan_study(load_study("paper", [none, "prompts.samples=50"])).stored
    # Shares of 0.34, 0.06 and 0.6: 17 and 3 samples, and 30 to be scored.
    assert (few.permuted, few.step_images) == (50, 50)
    off = ["permuted_weights=false", "clean_pixels=false"]
    off = ["trajectory.training=0", *(f"controls.{key}" for key in off)]
    every = plan_study(load_study("paper", [none, *off, "trajectory.samples=all"])).stored
    assert (every.permuted, every.step_images) == (0, 370)
