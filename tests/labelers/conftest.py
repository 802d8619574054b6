"""Shared fixtures: source images, and each labeler on tiny weights."""

import numpy as np
import pytest
import torch
from labeler_weights import IN_ONE_FILE, WRITERS
from scipy.ndimage import zoom

from ldmprobe_core.labelers.registry import load_labeler
from ldmprobe_core.study.probe_sections import LabelerSpec


@pytest.fixture(scope="session")
def source_images():
    """Three images that are not square: 48 down, 64 across."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, 6, 8, 3)).astype(float)
    return np.clip(zoom(coarse, (1, 8, 8, 1), order=1), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """Function from property and name to a labeler's spec and the labeler, loaded once each."""
    labelers = {}

    def load(prop, name):
        if (prop, name) not in labelers:
            weights = None
            if WRITERS[prop, name]:
                folder = tmp_path_factory.mktemp("labelers") / name
                WRITERS[prop, name](folder)
                weights = str(folder / "weights.safetensors" if name in IN_ONE_FILE else folder)
            spec = LabelerSpec(name=name, weights=weights)
            labelers[prop, name] = spec, load_labeler(prop, spec, torch.device("cpu"))
        return labelers[prop, name]

    return load
