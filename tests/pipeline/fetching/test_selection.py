"""Choice of the files of a repository."""

from ldmprobe_core.pipeline.fetching.selection import select_files


def test_select_files_takes_default_weights_and_configs_of_components():
    names = [
        "model_index.json", "sd-v1-4.ckpt", "README.md", "unet/config.json",
        "unet/flax_model.msgpack",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors", "tokenizer/merges.txt",
        "extra/config.json", "tokenizer/vocab.json", "tokenizer/chat_template.jinja",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors", "text_encoder/spiece.model",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model.fp16.safetensors.index.json",
    ]  # fmt: skip
    chosen = select_files(names, [".", "unet", "tokenizer", "text_encoder"])
    assert chosen.configs == (
        "model_index.json", "unet/config.json", "tokenizer/chat_template.jinja",
        "tokenizer/merges.txt", "tokenizer/vocab.json", "text_encoder/spiece.model",
    )  # fmt: skip
    assert chosen.weights == (
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
    )
    assert chosen.pickles == {}


def test_select_files_takes_pickles_of_components_without_safetensors():
    names = [
        "config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json",
        "training_args.bin", "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.bin",
    ]  # fmt: skip
    assert select_files(names, [".", "vae"]).pickles == {
        "pytorch_model-00001-of-00002.bin": "model-00001-of-00002.safetensors",
        "pytorch_model.bin.index.json": "model.safetensors.index.json",
        "vae/diffusion_pytorch_model.bin": "vae/diffusion_pytorch_model.safetensors",
    }
