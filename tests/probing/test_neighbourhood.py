"""Neighbourhoods of tokens against a loop."""

import numpy as np

from ldmprobe_core.probing.neighbourhood import neighbourhoods, probe_features
from ldmprobe_core.study.layers import LATENTS, LayerShape


def test_neighbourhoods_hold_the_tokens_around_each_token():
    tokens = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float16)
    found = neighbourhoods(tokens, 3)
    assert found.dtype == np.float16
    for n, y, x in np.ndindex(2, 3, 4):
        expected = []
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                inside = 0 <= y + down < 3 and 0 <= x + across < 4
                expected += list(tokens[n, y + down, x + across]) if inside else [0, 0]
        np.testing.assert_array_equal(found[n, y, x], expected)


def test_probe_features_of_latents_are_neighbourhoods_and_of_layers_the_activations():
    tokens = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype(np.float16)
    assert probe_features("mid_block", tokens) is tokens
    assert LayerShape(6, 6, 4).as_probed("mid_block") == (6, 6, 4)
    found = probe_features(LATENTS, tokens)
    assert found.shape == (2, *LayerShape(6, 6, 4).as_probed(LATENTS))
    np.testing.assert_array_equal(found, neighbourhoods(tokens, 5))
