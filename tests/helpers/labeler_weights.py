"""Writers of tiny random weights for each labeler, saved by the libraries themselves."""

import tiny_models
import torch
from diffusers import DDIMScheduler, MarigoldIntrinsicsPipeline
from safetensors.torch import save_file
from torchvision.models import vgg16
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)


def dpt(folder):
    torch.manual_seed(0)
    DPTForDepthEstimation(DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
        add_projection=False, readout_type="project",
    )).save_pretrained(folder)  # fmt: skip
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def depth_anything(folder, kind="relative"):
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=28,
        patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind,
    )).save_pretrained(folder)  # fmt: skip
    DPTImageProcessor(
        size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14
    ).save_pretrained(folder)


def glpn(folder):
    torch.manual_seed(0)
    GLPNForDepthEstimation(GLPNConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )).save_pretrained(folder)  # fmt: skip
    GLPNImageProcessor().save_pretrained(folder)


def classifier(folder):
    torch.manual_seed(0)
    names = {0: "lemon", 1: "orange", 2: "lemon"}
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=16, image_size=32, patch_size=16, id2label=names,
                       label2id={"lemon": 2, "orange": 1})  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def marigold(folder, targets=("albedo", "shading")):
    torch.manual_seed(0)
    count = len(targets)
    MarigoldIntrinsicsPipeline(
        unet=tiny_models.unet(in_channels=4 * (count + 1), out_channels=4 * count),
        vae=tiny_models.vae(),
        scheduler=DDIMScheduler(**tiny_models.NOISE, prediction_type="v_prediction"),
        text_encoder=tiny_models.clip(),
        tokenizer=tiny_models.new_tokenizer(),
        prediction_type="intrinsics",
        target_properties={"target_names": list(targets)},
        default_denoising_steps=2,
        default_processing_resolution=0,
    ).save_pretrained(folder, safe_serialization=True)


def tracer(folder):
    from carvekit.ml.arch.tracerb7.efficientnet import EfficientEncoderB7
    from carvekit.ml.arch.tracerb7.tracer import TracerDecoder

    torch.manual_seed(0)
    network = TracerDecoder(encoder=EfficientEncoderB7(), rfb_channel=[32, 64, 128],
                            features_channels=[48, 80, 224, 640])  # fmt: skip
    folder.mkdir()
    save_file({k: v.contiguous().clone() for k, v in network.state_dict().items()},
              folder / "weights.safetensors")  # fmt: skip


def inspyrenet(folder):
    from transparent_background.InSPyReNet import InSPyReNet_SwinB

    torch.manual_seed(0)
    network = InSPyReNet_SwinB(depth=64, pretrained=False, base_size=[384, 384], threshold=None)
    folder.mkdir()
    save_file({k: v.contiguous().clone() for k, v in network.state_dict().items()},
              folder / "weights.safetensors")  # fmt: skip


def vgg(folder):
    torch.manual_seed(0)
    folder.mkdir()
    state = {name: value.half() for name, value in vgg16().state_dict().items()}
    save_file(state, folder / "weights.safetensors")


WRITERS = {
    ("depth", "midas"): dpt,
    ("depth", "depth-anything"): depth_anything,
    ("depth", "transformers"): glpn,
    ("foreground", "tracer"): tracer,
    ("foreground", "inspyrenet"): inspyrenet,
    ("shading", "marigold"): marigold,
    ("shading", "retinex"): None,
    ("class", "vgg16"): vgg,
    ("class", "transformers"): classifier,
}
IN_ONE_FILE = {"tracer", "inspyrenet", "vgg16"}
