"""Prompts are told apart as the text encoders see them."""

import json

import pytest
import tiny_models
import torch

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.files.tokenization import PromptTokenizer


def tokenizer_of(folder):
    return PromptTokenizer(folder, detect_architecture(folder).diffusers_class)


@pytest.fixture(scope="module")
def embedded():
    return tokenizer_of(MODEL_FOLDER)


def test_tokenizer_of_ignores_case_and_spaces(embedded):
    one, two = embedded("A Red Ball on a gray floor"), embedded("a red  ball on a gray floor")
    assert one.ids == two.ids
    assert one.ids != embedded("a blue ball on a gray floor").ids


def test_tokenizer_of_names_text_beyond_the_length_and_ignores_it(embedded):
    start = "a red ball on a gray floor, white wall " * 4
    one, two = embedded(start + "and a cube"), embedded(start + "and a cone")
    assert one.ids == two.ids
    assert len(one.ids[0]) == 24
    assert one.cuts["tokenizer"].replace(" ", "").endswith("andacube")
    assert embedded("a red ball on a gray floor").cuts == {}


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_tokenizer_of_uses_every_tokenizer_of_an_architecture(name, tmp_path):
    folder = tiny_models.write(name, tmp_path / name)
    index = json.loads((folder / "model_index.json").read_text())
    tokens = tokenizer_of(folder)("a red ball")
    assert len(tokens.ids) == sum(key.startswith("tokenizer") for key in index)
    assert all(len(ids) >= 3 for ids in tokens.ids)


def test_tokenizer_of_refuses_a_tokenizer_that_does_not_fit_its_encoder(tmp_path):
    folder = tiny_models.write("sd1", tmp_path / "m")
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": 5}))
    with pytest.raises(UserError, match=r"and .* has a vocabulary of 5"):
        tokenizer_of(folder)


def test_tokenizer_of_names_a_tokenizer_that_cannot_be_read(tmp_path):
    folder = tiny_models.write("sd1", tmp_path / "m")
    for path in (folder / "tokenizer").iterdir():
        path.write_text("{")
    with pytest.raises(UserError, match="no usable tokenizer"):
        tokenizer_of(folder)


@pytest.mark.parametrize("kept", [1, 0.5, 0])
def test_tokenizer_of_refuses_a_merges_file_that_was_cut(tmp_path, kept):
    """The older files of a CLIP tokenizer: words to ids, and the pairs that make words."""
    folder = tiny_models.write("sd1", tmp_path / "m")
    files = folder / "tokenizer"
    before = tokenizer_of(folder)("a red ball").ids
    model = json.loads((files / "tokenizer.json").read_text())["model"]
    (files / "tokenizer.json").unlink()
    (files / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    whole = len(pairs)
    pairs = pairs[: int(whole * kept)]
    (files / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
    if kept == 1:
        assert tokenizer_of(folder)("a red ball").ids == before
        return
    with pytest.raises(UserError, match=rf"lacks {whole - len(pairs)} merges in merges\.txt.*Fix"):
        tokenizer_of(folder)


def test_tokenizer_of_pixart_makes_prompts_lowercase_as_its_pipeline_does(tmp_path):
    tokenize = tokenizer_of(tiny_models.write("pixart", tmp_path / "m"))
    assert tokenize(" A Red Ball").ids == tokenize("a red ball").ids
    assert tokenize("a red bell").ids != tokenize("a red ball").ids


@pytest.mark.parametrize("form", ["object", "folder"])
def test_a_textual_inversion_takes_a_token_for_each_of_its_vectors(tmp_path, form):
    pipeline = tiny_models.stable_diffusion_1()
    pipeline.load_textual_inversion({"<cat>": torch.randn(3, 16)}, token="<cat>")
    seen = []
    embed = pipeline.text_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pipeline.encode_prompt("a <cat> ball", "cpu", 1, False)
    embed.remove()
    if form == "folder":
        pipeline.save_pretrained(tmp_path)
        tokens = tokenizer_of(tmp_path)("a <cat> ball")
    else:
        tokens = PromptTokenizer.of_pipeline(pipeline)("a <cat> ball")
    words = pipeline.tokenizer.convert_ids_to_tokens(tokens.ids[0])
    assert [word for word in words if "cat" in word] == ["<cat>", "<cat>_1", "<cat>_2"]
    assert tuple(seen[0][0, : len(tokens.ids[0])].tolist()) == tokens.ids[0]
    assert tokens.cuts == {}


def test_text_that_a_textual_inversion_pushes_beyond_the_length_is_named():
    pipeline = tiny_models.stable_diffusion_1()
    length = pipeline.tokenizer.model_max_length
    pipeline.load_textual_inversion({"<cat>": torch.randn(length, 16)}, token="<cat>")
    tokenize = PromptTokenizer.of_pipeline(pipeline)
    one, two = tokenize("<cat> cube"), tokenize("<cat> cone")
    assert one.ids == two.ids
    assert one.cuts["tokenizer"].replace(" ", "").endswith("cube")


LONG = " ".join(f"a {colour} ball, a cube and" for colour in ["red", "Blue", "gray"] * 5)


T5 = {
    **{key: set() for key in tiny_models.FAMILIES},
    "sd3": {"tokenizer_3"},
    "pixart": {"tokenizer"},
    "flux": {"tokenizer_2"},
}
"""Names of the tokenizers that are not CLIP's."""


def lengthen(tokenizer, tokens):
    tokenizer.model_max_length = tokens
    return tokenizer


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        *((name, {}) for name in tiny_models.FAMILIES),
        ("sd3", {"tokenizer_2": 40}),
        ("sd3", {"tokenizer_2": 9}),
        ("sd3", {"tokenizer": 9}),
        ("sdxl", {"tokenizer": 9, "tokenizer_2": 9}),
        ("flux", {"tokenizer": 9}),
    ],
)
def test_tokenizer_of_gives_what_the_pipeline_passes_to_its_encoders(name, lengths, tmp_path):
    """Stable Diffusion 3 cuts for both CLIP encoders at the first tokenizer's length."""
    pipeline = tiny_models.FAMILIES[name]()
    for part, tokens in lengths.items():
        lengthen(getattr(pipeline, part), tokens)
    pipeline.save_pretrained(tmp_path / "m")
    pipeline = type(pipeline).from_pretrained(tmp_path / "m")
    tokens = tokenizer_of(tmp_path / "m")(LONG)
    encoders = sorted(key for key in pipeline.config if key.startswith("text_encoder"))
    given = {}
    for encoder in encoders:

        def keep(_, args, encoder=encoder):
            given.setdefault(encoder, args[0][0].tolist())

        getattr(pipeline, encoder).register_forward_pre_hook(keep)
    pipeline.set_progress_bar_config(disable=True)
    more = {"use_resolution_binning": False} if name == "pixart" else {}
    pipeline(LONG, num_inference_steps=2, guidance_scale=1.0, output_type="latent", **more)
    assert len(tokens.ids) == len(encoders) == len(given)
    for ids, encoder in zip(tokens.ids, encoders, strict=True):
        padding = given[encoder][len(ids) :]
        assert list(ids) == given[encoder][: len(ids)]
        assert len(set(padding)) <= 1
    clip = {key for key in tokens.cuts if "CLIP" in type(getattr(pipeline, key)).__name__}
    assert clip == {key for key in pipeline.config if key.startswith("tokenizer")} - T5[name]


def test_tokenizer_of_leaves_out_a_tokenizer_without_its_encoder(tmp_path):
    """Stable Diffusion 3 is often used without its T5 encoder, which then reads nothing."""
    pipeline = tiny_models.FAMILIES["sd3"]()
    pipeline.register_modules(text_encoder_3=None)
    pipeline.save_pretrained(tmp_path / "m")
    tokenize = tokenizer_of(tmp_path / "m")
    assert list(tokenize.lengths) == ["tokenizer", "tokenizer_2"]
    one, two = tokenize(f"{LONG} one"), tokenize(f"{LONG} two")
    assert one.ids == two.ids


@pytest.mark.parametrize("length", [None, 25, 0, -1])
def test_tokenizer_of_refuses_more_tokens_than_the_encoder_has_positions(tmp_path, length):
    folder = tiny_models.write("sd1", tmp_path / "m")
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("model_max_length")
    path.write_text(json.dumps(config | ({} if length is None else {"model_max_length": length})))
    with pytest.raises(UserError, match=r"tokens \(model_max_length\), .* 24 \(max_position"):
        tokenizer_of(folder)


def test_tokenizer_of_refuses_encoders_whose_outputs_cannot_be_joined(tmp_path):
    """Stable Diffusion XL joins its encoders' outputs token by token."""
    pipeline = tiny_models.FAMILIES["sdxl"]()
    lengthen(pipeline.tokenizer_2, 9)
    pipeline.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=r"different values of model_max_length \(24, 9\).*Fix"):
        tokenizer_of(tmp_path / "m")
