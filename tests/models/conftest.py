"""Shared fixtures: a folder for each architecture, and captures of the tiny denoiser."""

import pytest
import tiny_models
import torch

from ldmprobe_core.models import loading
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.capture import ActivationCapture


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    """Folder of a tiny checkpoint by architecture name."""
    root = tmp_path_factory.mktemp("families")
    return {name: tiny_models.write(name, root / name) for name in tiny_models.FAMILIES}


@pytest.fixture
def unet(tiny_model, tiny_study):
    return loading.load_pipeline(tiny_study(), torch.device("cpu")).unet


@pytest.fixture
def architecture(tiny_model):
    return detect_architecture(tiny_model)


@pytest.fixture
def capture_layers(unet, architecture):
    """Function that captures named layers of the tiny denoiser."""

    def capture(layers, batch_copies):
        modules = dict(unet.named_modules())
        return ActivationCapture(
            {name: modules[name] for name in layers}, architecture, batch_copies, unet
        )

    return capture
