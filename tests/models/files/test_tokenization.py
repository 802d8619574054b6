"""Prompts are told apart as the text encoders see them."""

import json

import pytest
import tiny_models

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


def test_tokenizer_of_pixart_makes_prompts_lowercase_as_its_pipeline_does(tmp_path):
    tokenize = tokenizer_of(tiny_models.write("pixart", tmp_path / "m"))
    assert tokenize(" A Red Ball").ids == tokenize("a red ball").ids
    assert tokenize("a red bell").ids != tokenize("a red ball").ids
