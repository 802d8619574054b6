"""Class labelers: torchvision's transforms, and unique class names."""

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import VGG16_Weights, vgg16


def test_load_vgg16_uses_torchvisions_own_transforms(loaded, source_images):
    spec, labeler = loaded("class", "vgg16")
    transform = VGG16_Weights.IMAGENET1K_V1.transforms()
    network = vgg16()
    network.load_state_dict({k: v.float() for k, v in load_file(spec.weights).items()})
    with torch.no_grad():
        data = torch.stack([transform(Image.fromarray(p)) for p in source_images])
        expected = network.eval()(data).softmax(1).numpy()
    # PIL resizes in 8 bits, tensors in floats: about a level of 255
    np.testing.assert_allclose(labeler(source_images), expected, rtol=0.05)
    assert labeler.classes[951] == "lemon"
    assert labeler.classes[950] == "orange"
    assert len(labeler.classes) == 1000


def test_load_transformers_classes_numbers_repeated_names(loaded):
    assert loaded("class", "transformers")[1].classes == ("lemon", "orange", "lemon (2)")
