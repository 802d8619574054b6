"""Edits against a general solver and the paper's loop; targets against slow loops."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize

from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.edit import (
    EditDirection,
    edit_by_gradient_descent,
    random_change_like,
    target_reading,
)
from ldmprobe_core.interventions.targets import Target, target_map
from ldmprobe_core.models.token_grid import Grid, change_grid
from ldmprobe_core.probing.linear import LinearProbe


def probe(channels, seed=0):
    rng = np.random.default_rng(seed)
    return LinearProbe(rng.normal(size=channels), float(rng.normal()), 0.0)


def tokens(shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


@pytest.mark.parametrize("metric", ["l2", "covariance"])
def test_the_exact_edit_reads_the_target_and_no_smaller_one_does(metric):
    rng = np.random.default_rng(2)
    for case in range(5):
        channels = 6
        mixed = rng.normal(size=(channels, channels))
        covariance = mixed @ mixed.T + 0.1 * np.eye(channels)
        p = probe(channels, case)
        direction = EditDirection.of_probe(p, covariance if metric == "covariance" else None)
        x = tokens((2, 3, 3, channels), case)
        target = tokens((2, 3, 3), case + 50) * 3
        edited = direction.exact(x, target, 1.0)
        np.testing.assert_allclose(p.predict(edited.double().numpy()), target, atol=1e-4)
        # one token, by a general solver: the smallest d' C^-1 d that reads the target
        inverse = np.linalg.inv(covariance) if metric == "covariance" else np.eye(channels)
        h, t = x[1, 2, 0].double().numpy(), float(target[1, 2, 0])
        solved = minimize(
            lambda d, inverse=inverse: d @ inverse @ d,
            np.zeros(channels),
            constraints={
                "type": "eq",
                "fun": lambda d, p=p, h=h, t=t: p.weight @ (h + d) + p.bias - t,
            },
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        ours = edited[1, 2, 0].double().numpy() - h
        assert ours @ inverse @ ours <= solved.fun * (1 + 1e-4)
        np.testing.assert_allclose(ours, solved.x, atol=2e-3)


def test_strength_goes_part_of_the_way_and_nan_leaves_a_token():
    p = probe(5)
    direction = EditDirection.of_probe(p)
    x, target = tokens((1, 2, 2, 5)), tokens((1, 2, 2), 9)
    before = torch.from_numpy(p.predict(x.numpy()))
    for strength in (0.0, 0.3, 1.0):
        after = torch.from_numpy(p.predict(direction.exact(x, target, strength).numpy()))
        torch.testing.assert_close(
            after, before + strength * (target - before), rtol=1e-4, atol=1e-4
        )
    assert torch.equal(direction.exact(x, target, 0.0), x)
    target[0, 1, 1] = float("nan")
    assert torch.equal(direction.exact(x, target, 1.0)[0, 1, 1], x[0, 1, 1])
    with pytest.raises(ValueError, match="weights are zero"):
        EditDirection.of_probe(LinearProbe(np.zeros(3), 1.0, 0.0))


@pytest.mark.parametrize("foreground", [True, False])
def test_adam_follows_the_papers_loop_step_for_step(foreground):
    """Written out: two logits under cross-entropy, or Huber; upsampled by nearest; Adam by hand."""
    p = probe(4)
    x = tokens((1, 2, 2, 4))
    rng = np.random.default_rng(5)
    target = (rng.random((1, 8, 8)) > 0.5) * 1.0 if foreground else rng.normal(size=(1, 8, 8))
    found = edit_by_gradient_descent(
        x, torch.from_numpy(target).float(), EditDirection.of_probe(p), foreground, 20, 5e-3
    )
    h = x[0].double().numpy().copy()
    m, v = np.zeros_like(h), np.zeros_like(h)
    for t in range(1, 21):
        gradient = np.zeros_like(h)
        for i in range(8):
            for j in range(8):
                y, z = i // 4, j // 4
                read = h[y, z] @ p.weight + p.bias
                if foreground:  # softmax of (0, read): d loss / d read = probability - label
                    slope = 1 / (1 + np.exp(-read)) - target[0, i, j]
                else:
                    slope = np.clip(read - target[0, i, j], -1, 1)
                gradient[y, z] += slope * p.weight / 64
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        h -= 5e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(found[0].numpy(), h, atol=1e-4)
    assert not np.allclose(found[0].numpy(), x[0].numpy(), atol=1e-2)


def test_adam_edits_a_batch_as_its_samples_alone():
    p, x = probe(4), tokens((3, 2, 2, 4))
    target = (tokens((3, 4, 4), 8) > 0).float()
    together = edit_by_gradient_descent(x, target, EditDirection.of_probe(p), True, 10)
    alone = edit_by_gradient_descent(x[1:2], target[1:2], EditDirection.of_probe(p), True, 10)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-6)


def test_a_random_change_has_the_same_norm_at_every_token():
    change = tokens((2, 3, 3, 16))
    change[0, 0, 0] = 0
    found = random_change_like(change, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.norm(dim=-1), change.norm(dim=-1), rtol=1e-4, atol=1e-6)
    cosine = (found * change).sum(-1) / change.norm(dim=-1).clamp_min(1e-9) ** 2
    assert cosine.abs().mean() < 0.5


def test_readings_are_logits_of_shares():
    share = np.array([[[0.0, 0.5, 1.0]]])
    np.testing.assert_allclose(
        target_reading(share, "logistic", True, 0.9), np.log([[[1 / 9, 1, 9]]]), rtol=1e-12
    )
    np.testing.assert_array_equal(target_reading(share, "ridge", True), share)
    np.testing.assert_array_equal(target_reading(share, "logistic", False), share)


@pytest.mark.parametrize("batch_copies", [1, 2])
def test_only_the_conditional_image_tokens_are_changed(batch_copies):
    text = 3
    output = torch.arange(2.0 * batch_copies * (text + 8) * 5).reshape(
        2 * batch_copies, text + 8, 5
    )
    found = change_grid((None, output), Grid(4, 2, text), 1, batch_copies, lambda h: h + 1)[1]
    expected = output.clone()
    for n in range(2 * batch_copies - 2, 2 * batch_copies):
        for token in range(text, text + 8):
            expected[n, token] += 1
    torch.testing.assert_close(found, expected)
    maps = torch.zeros(2 * batch_copies, 5, 4, 2)
    found = change_grid(maps, Grid(8, 4), 0, batch_copies, lambda h: h + torch.arange(5.0))
    assert (found[-2:] == torch.arange(5.0)[None, :, None, None]).all()
    assert (found[:-2] == 0).all()
    assert (maps == 0).all()  # the output itself is left alone
    assert torch.equal(change_grid(output, Grid(11, 1), 0, batch_copies, lambda h: h), output)


# --- targets -------------------------------------------------------------------------------------


def moved_by_hand(own, dx, dy):
    height, width = own.shape
    out = np.zeros_like(own)
    for y in range(height):
        for x in range(width):
            a, b = y - dy, x - dx
            if own.dtype != bool:
                a, b = min(max(a, 0), height - 1), min(max(b, 0), width - 1)
            if 0 <= a < height and 0 <= b < width:
                out[y, x] = own[a, b]
    return out


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-2, 4), (0, -5), (0, 0)])
def test_a_map_is_moved_as_a_loop_moves_it(dx, dy):
    rng = np.random.default_rng(3)
    mask, depth = rng.random((20, 10)) > 0.6, rng.random((20, 10)).astype(np.float32)
    target = Target(dx=dx / 10, dy=dy / 20)
    np.testing.assert_array_equal(target_map(mask, target), moved_by_hand(mask, dx, dy))
    np.testing.assert_allclose(target_map(depth, target), moved_by_hand(depth, dx, dy), atol=1e-6)


def test_mirror_and_scale():
    mask = np.zeros((20, 20), bool)
    mask[4:8, 2:6] = True
    np.testing.assert_array_equal(target_map(mask, Target(mirror=True)), mask[:, ::-1])
    grown = target_map(mask, Target(scale=2.0))
    assert grown.sum() == 4 * mask.sum()
    np.testing.assert_allclose(np.argwhere(grown).mean(0), np.argwhere(mask).mean(0), atol=0.6)
    depth = np.random.default_rng(0).random((8, 6))
    np.testing.assert_allclose(target_map(depth, Target(mirror=True)), depth[:, ::-1], atol=1e-9)


def test_a_target_from_a_file(tmp_path):
    mask = np.zeros((8, 6), bool)
    mask[2:4, 1:3] = True
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", np.random.default_rng(0).random((8, 6)).astype(np.float32))
    own = np.ones((8, 6), bool)
    np.testing.assert_array_equal(target_map(own, Target(file=str(tmp_path / "m.png"))), mask)
    depth = target_map(np.ones((8, 6), np.float32), Target(file=str(tmp_path / "m.npy")))
    np.testing.assert_allclose(depth, np.load(tmp_path / "m.npy"), atol=1e-6)
    with pytest.raises(UserError, match=r"m\.png' is 8 x 6, and the images are 8 x 8"):
        target_map(np.ones((8, 8), bool), Target(file=str(tmp_path / "m.png")))
    with pytest.raises(UserError, match=r"m\.png': a map is given as \.npy"):
        target_map(np.ones((8, 6), np.float32), Target(file=str(tmp_path / "m.png")))
    np.save(tmp_path / "n.npy", np.where(mask, np.nan, 1))
    with pytest.raises(UserError, match=rf"{int(mask.sum())} pixels are NaN. Fix: give every"):
        target_map(np.ones((8, 6), np.float32), Target(file=str(tmp_path / "n.npy")))
    with pytest.raises(UserError, match="no such file"):
        target_map(own, Target(file=str(tmp_path / "none.png")))
    (tmp_path / "t.png").write_text("text")
    with pytest.raises(UserError, match="give a PNG or NPY"):
        target_map(own, Target(file=str(tmp_path / "t.png")))
