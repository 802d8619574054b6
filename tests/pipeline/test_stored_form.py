"""Data type and pooling of stored activations (``capture.dtype``, ``capture.pool``)."""

import numpy as np
import pytest
import torch
from model_helpers import load_sampler
from run_helpers import carry_out, small_study, statistics_study

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.plan import plan_intervention
from ldmprobe_core.interventions.spec import Intervention
from ldmprobe_core.models.host_transfer import HostTransfer
from ldmprobe_core.pipeline.activation_sinks import ActivationBuffer
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.pipeline.statistics import load_statistics
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.layers import CLEAN_PIXELS, LATENTS
from ldmprobe_core.study.loading import load_study, parse_study
from ldmprobe_core.study.schema import Study

FORM = {"dtype": "float32", "pool": {"above": 4, "by": 2}}
"""The tiny denoiser's layers have 8 x 8 and 4 x 4 tokens."""


@pytest.fixture(scope="module")
def pooled(tiny_model, tmp_path_factory) -> Run:
    """Run that stores float32 activations, large maps pooled, and sums of them."""
    study = statistics_study(tiny_model, "both", 12, capture=FORM, controls={"permutations": 1})
    return carry_out(study, str(tmp_path_factory.mktemp("pooled")))


def means_by_hand(tokens: np.ndarray, side: int) -> np.ndarray:
    """Means over blocks of a map (y, x, ...), one block at a time, in float64."""
    rows = range(0, tokens.shape[0], side)
    columns = range(0, tokens.shape[1], side)
    blocks = [[tokens[a : a + side, b : b + side] for b in columns] for a in rows]
    return np.array([[block.astype(float).mean((0, 1)) for block in row] for row in blocks])


def test_activations_are_stored_in_the_data_type_and_pooled(pooled):
    """Against the outputs of the modules themselves, of the same batch."""
    sampler = load_sampler(pooled.study)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in sampler.layers}
    modules = dict(sampler.denoiser.named_modules())
    hooks = [
        modules[name].register_forward_hook(
            lambda _m, _i, output, name=name: seen[name].append(output[4:].numpy())
        )
        for name in sampler.layers
    ]
    sampler.sample(pooled.samples[:4], ActivationBuffer(), step_images=False, permuted=False)
    for hook in hooks:
        hook.remove()
    sides = []
    for name, outputs in seen.items():
        tokens = outputs[1].shape[1]
        full = outputs[1].reshape(4, round(tokens**0.5), -1, outputs[1].shape[-1])
        side = 2 if tokens == 64 else 1
        sides.append(side)
        stored = pooled.read(f"activations/{name}", "activation", step=1)[:4]
        assert stored.dtype == np.float32
        expected = [means_by_hand(one, side) for one in full]
        np.testing.assert_allclose(stored, expected, rtol=1e-6, atol=1e-7)
        assert (stored != stored.astype(np.float16)).any()
    assert sorted(sides) == [1, 2]


def test_inputs_are_stored_in_the_data_type_and_never_pooled(pooled):
    for name in (LATENTS, CLEAN_PIXELS):
        stored = pooled.open(f"activations/{name}").activation
        assert (stored.dtype, stored.sizes["y"], stored.sizes["x"]) == (np.float32, 8, 8)
    latents = pooled.read(f"activations/{LATENTS}", "activation", step=0)
    assert (latents != latents.astype(np.float16)).any()


def test_labels_are_averaged_over_the_pooled_blocks(pooled):
    """Entry by entry: sums of products of stored activations and label means of their blocks."""
    labels, layer = label_set(pooled), pooled.layers[0]
    values = pooled.read(f"activations/{layer}", "activation", step=2)[labels.train]
    channels, grid = values.shape[-1], values.shape[1]
    rows = values.reshape(-1, channels).astype(float)
    statistics = load_statistics(pooled, "trained", 3, layer)
    np.testing.assert_allclose(statistics.gram[:channels, :channels], rows.T @ rows, rtol=1e-9)
    for number, prop in enumerate(labels.maps):
        maps = labels.maps[prop][labels.train]
        tokens = np.stack([means_by_hand(one, maps.shape[1] // grid) for one in maps])
        found = statistics.gram[:channels, channels + 1 + number]
        np.testing.assert_allclose(found, rows.T @ tokens.ravel(), rtol=1e-6, atol=1e-9)
    scores = pooled.read("scores/depth", "score")
    assert np.isfinite(scores[0, 0, 0, :, : len(pooled.layers)]).any(-1).all()


def test_float32_counts_only_what_is_not_finite_in_it():
    values = torch.zeros(2, 2, 2, 3)
    values[0, 0, 0] = torch.tensor([1e9, -1e38, 65_520.0])
    values[1, 1, 1] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert HostTransfer({"a": values}).result()["a"][1].tolist() == [0, 3]
    assert HostTransfer({"a": values.half()}).result()["a"][1].tolist() == [3, 3]


def test_sizes_of_stable_diffusion_by_hand():
    """Five of its layers have 64 x 64 tokens of 320 channels; 11,550,720 values an image in all."""
    none = ["prompts.files=null", "prompts.set=objects", "prompts.samples=8"]
    size = {}
    for name, keys in {
        "plain": [],
        "float32": ["capture.dtype=float32"],
        "pooled": ["capture.pool={above: 32, by: 2}"],
    }.items():
        plan = plan_study(load_study("paper", [*none, *keys]))
        size[name] = plan.bytes_of["activations"] / (8 * 15), plan.bytes_of["inputs"]
        largest = max(shape.y for layer, shape in plan.shapes.items() if layer in plan.layers)
        assert largest == (32 if name == "pooled" else 64)
    assert size["plain"][0] == 11_550_720 * 2
    assert size["float32"] == (11_550_720 * 4, 2 * size["plain"][1])
    assert size["pooled"] == ((11_550_720 - 5 * 3 * 32 * 32 * 320) * 2, size["plain"][1])


def test_defaults_leave_hashes_of_older_studies_alone():
    assert Study().hash == "781e1945d9babd6a"
    assert parse_study({"capture": {"dtype": "float16", "pool": None}}).hash == Study().hash
    changed = [parse_study({"capture": {key: value}}) for key, value in FORM.items()]
    assert len({Study().hash, *(study.hash for study in changed)}) == 3
    for study in changed:
        assert parse_study(study.model_dump(mode="json", by_alias=True)) == study
    assert not {"dtype", "pool"} & Study().model_dump()["capture"].keys()


def test_pools_that_do_not_fit_are_refused(tiny_model, pooled):
    study = small_study("odd", tiny_model, 12)
    odd = study.model_copy(
        update={"capture": parse_study({"capture": {"pool": {"above": 4, "by": 3}}}).capture}
    )
    with pytest.raises(UserError, match=r"capture.pool.by: the 8 x 8 tokens of .* \(3\)\. Fix: "):
        plan_study(odd)
    with pytest.raises(UserError, match=r"capture.pool: .* means of blocks .* \(2 x 2\)\. Fix: "):
        plan_intervention(pooled, Intervention(prop="foreground"))
