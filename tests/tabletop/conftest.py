"""A small rendered dataset that training tests share."""

import pytest
import torch

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.tabletop import denoiser
from ldmprobe_core.tabletop.autoencoder import load_autoencoder
from ldmprobe_core.tabletop.dataset import Dataset, render_dataset

CPU = torch.device("cpu")


@pytest.fixture(scope="package")
def tiny(tmp_path_factory):
    """Training folder, dataset of 40 scenes, shipped VAE, and latents of the scenes."""
    folder = tmp_path_factory.mktemp("training")
    render_dataset(folder / "scenes", 40, processes=1)
    data = Dataset(folder / "scenes", held_out=24)
    vae = load_autoencoder(MODEL_FOLDER)
    return folder, data, vae, denoiser.latent_dataset(data, vae, folder, CPU)
