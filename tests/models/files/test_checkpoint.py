"""Weights that are missing, cut or of another model are named from file headers alone."""

import json
import re
import shutil
import struct
from contextlib import nullcontext

import pytest
import tiny_models
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from ldmprobe_core.errors import UserError
from ldmprobe_core.models.files.checkpoint import (
    read_component,
    read_header,
    require_weights,
    surplus_names,
)
from ldmprobe_core.models.loading import check_weights

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def component(tmp_path):
    """A folder with one small network of two layers, and the network on the meta device."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    save_file(network.state_dict(), tmp_path / WEIGHTS)
    with torch.device("meta"):
        return tmp_path, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_read_header_gives_the_names_and_shapes_that_safetensors_reads(folder):
    path = folder / "unet" / WEIGHTS
    with safe_open(path, framework="pt") as file:
        expected = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {name: tensor.shape for name, tensor in read_header(path).items()} == expected


def test_require_weights_accepts_each_component_as_it_was_saved(folder):
    parts = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    with torch.device("meta"):
        for name, kind in parts.items():
            require_weights(folder / name, kind.from_config(kind.load_config(folder / name)))
        config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
        require_weights(folder / "text_encoder", CLIPTextModel(config))


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_check_weights_accepts_every_architecture_and_names_a_lost_tensor(name, tmp_path):
    folder = tiny_models.write(name, tmp_path / name)
    check_weights(folder)
    path = next(
        p for part in ("text_encoder_3", "text_encoder_2", "text_encoder")
        for p in (folder / part).glob("*.safetensors")
    )  # fmt: skip
    state = load_file(path)
    lost = max(state, key=lambda key: ("layer" in key, key))
    del state[lost]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks the tensor.*{lost.rpartition('.')[2]}"):
        check_weights(folder)


def test_require_weights_accepts_the_older_names_of_attention_weights(folder, tmp_path):
    state = load_file(folder / "vae" / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in state.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = value
    assert renamed.keys() != state.keys()
    save_file(renamed, tmp_path / WEIGHTS)
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
    require_weights(tmp_path, vae)


def test_require_weights_names_a_missing_tensor(component):
    path, network = component
    state = load_file(path / WEIGHTS)
    del state["1.bias"]
    save_file(state, path / WEIGHTS)
    with pytest.raises(UserError, match=r"lacks the tensor 1\.bias\. Fix"):
        require_weights(path, network)


@pytest.mark.parametrize(
    ("part", "setting", "lost"),
    [
        ("text_encoder", {"num_hidden_layers": 1}, r"encoder\.layers\.1\."),
        ("unet", {"mid_block_type": None}, r"^mid_block\."),
        ("vae", {"mid_block_add_attention": False}, r"mid_block\.attentions\."),
        ("vae", {"use_quant_conv": False}, r"^quant_conv\."),
    ],
)
def test_check_weights_names_tensors_without_a_place_in_the_config(
    folder, tmp_path, part, setting, lost
):
    """The library loads such a model without an error, and drops these tensors."""
    changed = tmp_path / "model"
    shutil.copytree(folder, changed)
    path = changed / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    stored = load_file(next(path.parent.glob("*.safetensors")))
    number = sum(re.search(lost, name) is not None for name in stored)
    with pytest.raises(UserError, match=r"has no place for\. Fix: fetch") as caught:
        check_weights(changed)
    match = re.search(rf"{part} holds {number} tensors \((\S+), \.\.\.\) that", str(caught.value))
    assert match
    assert re.search(lost, match[1])
    advised = "or to leave out layers, save the shorter network with save_pretrained"
    assert (advised in str(caught.value)) == (part == "text_encoder")


def test_require_weights_accepts_a_text_encoder_in_the_file_of_a_whole_model(folder, tmp_path):
    """As in files of CLIP, which also hold the image encoder and its longer list of layers."""
    state = load_file(folder / "text_encoder" / "model.safetensors")
    further = {f"vision_model.encoder.layers.{i}.mlp.fc1.weight": torch.zeros(2) for i in range(9)}
    further |= {"logit_scale": torch.ones(()), "text_model.embeddings.position_ids": torch.zeros(2)}
    save_file(state | further, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with torch.device("meta"):
        network = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    require_weights(tmp_path, network)


def test_require_weights_accepts_moving_averages_and_buffers_of_the_network(component):
    path, network = component
    state = load_file(path / WEIGHTS)
    network.register_buffer("table", torch.zeros(3, device="meta"), persistent=False)
    further = {"table": torch.zeros(3), "model_ema.0.weight": torch.zeros(4, 3)}
    save_file(state | further, path / WEIGHTS)
    require_weights(path, network)


def test_require_weights_names_a_tensor_of_another_shape(component):
    path, network = component
    state = load_file(path / WEIGHTS)
    state["0.weight"] = torch.zeros(4, 5)
    save_file(state, path / WEIGHTS)
    with pytest.raises(UserError, match=r"tensor 0\.weight has shape \(4, 5\), not \(4, 3\)"):
        require_weights(path, network)


@pytest.mark.parametrize(
    ("kept", "complete"),
    [
        ({"shared.weight"}, True),
        ({"encoder.embed_tokens.weight"}, True),
        ({"shared.weight", "encoder.embed_tokens.weight"}, True),
        (set(), False),
    ],
)
def test_require_weights_needs_one_of_the_tensors_that_share_values(tmp_path, kept, complete):
    """Judged by the library itself: it gives the embedding of the file, or a random one."""
    both = ("shared.weight", "encoder.embed_tokens.weight")
    config = T5Config(
        vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, num_decoder_layers=0
    )
    T5EncoderModel(config).save_pretrained(tmp_path)
    path, embedding = tmp_path / "model.safetensors", torch.arange(96.0).reshape(12, 8)
    state = {name: value for name, value in load_file(path).items() if name not in both}
    save_file(state | {name: embedding.clone() for name in kept}, path, {"format": "pt"})
    loaded = T5EncoderModel.from_pretrained(tmp_path).encoder.embed_tokens.weight
    assert torch.equal(loaded, embedding) == complete
    with torch.device("meta"):
        network = T5EncoderModel(config)
    refused = pytest.raises(UserError, match=r"lacks the tensor shared\.weight and 1 more\. Fix")
    with nullcontext() if complete else refused:
        require_weights(tmp_path, network)


def _shards(path, lost):
    state = load_file(path / WEIGHTS)
    names = sorted(state)
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in set(files.values()) - {lost}:
        save_file({n: state[n] for n in names if files[n] == shard}, path / shard)
    index = {"weight_map": files}
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (path / WEIGHTS).unlink()


def test_read_component_joins_shards_and_names_one_that_is_missing(component):
    path, network = component
    whole = read_component(path)
    _shards(path, None)
    assert read_component(path) == whole
    require_weights(path, network)
    (path / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"shard .*part-1\.safetensors is missing"):
        require_weights(path, network)
    (path / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../../x"}}')
    with pytest.raises(UserError, match=r"shard .* is missing"):
        read_component(path)


@pytest.mark.parametrize("stored", [(4, 3, 1, 1), (4, 1, 3), (1, 4, 3), (3, 4)])
def test_require_weights_refuses_shapes_that_its_library_does_not_load(component, stored):
    folder, network = component
    state = {key: torch.zeros(value.shape) for key, value in network.state_dict().items()}
    save_file(state | {"0.weight": torch.zeros(stored)}, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"tensor 0\.weight has shape .*, not \(4, 3\)"):
        require_weights(folder, network)


@pytest.mark.parametrize(
    ("part", "own", "other"), [("unet", WEIGHTS, "model"), ("text_encoder", "model", WEIGHTS)]
)
def test_check_weights_takes_the_file_name_that_the_library_takes(tmp_path, part, own, other):
    folder = tiny_models.write("sd1", tmp_path / "m") / part
    own, other = (name.removesuffix(".safetensors") for name in (own, other))
    whole = (folder / f"{own}.safetensors").read_bytes()
    (folder / f"{other}.safetensors").write_bytes(whole)
    check_weights(folder.parent)
    (folder / f"{own}.safetensors").unlink()
    with pytest.raises(
        UserError, match=rf"variant .*{other}.*, or rename the file to {own}\.safetensors"
    ):
        check_weights(folder.parent)
    # A cut file beside a whole one: diffusers takes the shards, transformers the single file.
    (folder / f"{other}.safetensors").unlink()
    (folder / "shard.safetensors").write_bytes(whole)
    names = dict.fromkeys(load_file(folder / "shard.safetensors"), "shard.safetensors")
    index = folder / f"{own}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    (folder / f"{own}.safetensors").write_bytes(whole[:-8])
    if part == "unet":
        check_weights(folder.parent)
    else:
        with pytest.raises(UserError, match="not a complete safetensors file"):
            check_weights(folder.parent)


def test_read_component_names_a_variant_and_an_empty_folder(component):
    path, network = component
    (path / WEIGHTS).rename(path / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(
        UserError, match=r"holds only a variant .*diffusion_pytorch_model\.fp16\.safetensors"
    ):
        require_weights(path, network)
    (path / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        require_weights(path, network)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], r"declares \d+ bytes of tensors, but the file holds \d+"),
        (lambda data: data[:20], "header is missing"),
        (lambda data: b"", "header is missing"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (lambda data: struct.pack("<Q", 2**60) + data[8:], "header is missing"),
        (lambda data: data + b"x", "header declares"),
        (lambda data: data.replace(b'"F32"', b'"F64"'), "more or fewer bytes than its shape needs"),
    ],
)
def test_read_header_refuses_a_file_that_is_not_whole(component, damage, words):
    path = component[0] / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=words):
        read_header(path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.binary(max_size=120), st.binary(max_size=40)).map(
            lambda parts: struct.pack("<Q", len(parts[0])) + parts[0] + parts[1]
        ),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["a", "shape", "dtype", "data_offsets", "__metadata__"]), inner
                )
            ),
            max_leaves=8,
        )
        .map(lambda tree: json.dumps(tree).encode())
        .map(lambda text: struct.pack("<Q", len(text)) + text),
    )
)
def test_read_header_of_any_bytes_is_a_header_or_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    try:
        tensors = read_header(path)
    except UserError:
        return
    assert all(isinstance(tensor.shape, tuple) for tensor in tensors.values())


def rewrite_header(path, change):
    """Apply a function to the parsed header of a safetensors file, and keep its data."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_read_header_refuses_encodings_that_safetensors_does_not_load(tmp_path, encoding):
    path = tmp_path / WEIGHTS
    save_file({"a": torch.zeros(2)}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].decode().encode(encoding)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(UserError, match="not a complete safetensors file"):
        read_header(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h["0.bias"].update(dtype="Q4"), r"0\.bias has an unknown dtype, 'Q4'"),
        (lambda h: h["0.bias"].update(dtype=None), "unknown dtype, None"),
        (
            lambda h: h["2.bias"].update(
                data_offsets=h["2.bias"]["data_offsets"][:1] * 2, shape=[0]
            ),
            "does not begin where the one before it ends",
        ),
        (
            lambda h: h["1.bias"].update(shape=[4], data_offsets=h["0.bias"]["data_offsets"]),
            "does not begin where the one before it ends",
        ),
        (
            lambda h: h.update(__metadata__={"format": 5}),
            "__metadata__ has values other than strings",
        ),
    ],
)
def test_read_header_refuses_what_safetensors_cannot_load(tmp_path, change, words):
    path = tmp_path / WEIGHTS
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 5))
    save_file(network.state_dict(), path)
    rewrite_header(path, change)
    with pytest.raises(UserError, match=words):
        read_header(path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e4m3fn])
def test_require_weights_refuses_quantized_weights(component, dtype):
    """Loading converts them to floats without their scales, so that the images are noise."""
    path, network = component
    weights = {name: (9 * value).to(dtype) for name, value in load_file(path / WEIGHTS).items()}
    save_file(weights, path / WEIGHTS)
    with pytest.raises(UserError, match=r"0\.weight is stored as .* as in a quantized model\. Fix"):
        require_weights(path, network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_require_weights_accepts_floats_of_every_width(component, dtype):
    path, network = component
    save_file({k: v.to(dtype) for k, v in load_file(path / WEIGHTS).items()}, path / WEIGHTS)
    require_weights(path, network)


def test_check_weights_refuses_a_config_that_asks_for_quantization(tmp_path):
    folder = tiny_models.write_tiny_model(tmp_path / "model")
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"unet/config\.json has a quantization_config.*Fix"):
        check_weights(folder)


def test_a_leftover_of_pixart_alphas_published_files_is_no_surplus():
    """Its files have the null caption of training, which diffusers does not read."""
    names = ["caption_projection.linear_1.weight", "caption_projection.y_embedding", "more.weight"]
    assert surplus_names(names, names[:1], nn.Module()) == ["more.weight"]
