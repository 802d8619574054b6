"""Prompts that are one to the model are refused, with both of their lines."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from ldmprobe_core.assets import MODEL_FOLDER
from ldmprobe_core.errors import UserError
from ldmprobe_core.models.architectures.registry import detect_architecture
from ldmprobe_core.models.files.tokenization import PromptTokenizer
from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.pipeline.planning.prompt_checks import check_samples, long_text_notes
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.samples import Sample, make_samples

LONG = "a red ball on a gray floor, white wall, " * 4


@pytest.fixture(scope="module")
def tokenize():
    return PromptTokenizer(MODEL_FOLDER, detect_architecture(MODEL_FOLDER).diffusers_class)


def sample(index, prompt, seed, split="train"):
    return Sample(index, prompt, seed, None, split, origin=f"a.csv, line {index + 2}")


def test_prompt_checks_find_a_duplicate_in_two_spellings(tokenize):
    samples = [
        sample(0, "A Red Ball on a gray floor", 5),
        sample(1, "a red  ball on a gray floor", 5),
    ]
    with pytest.raises(UserError, match=r"a\.csv, line 3 .* the same prompt as a\.csv, line 2 .*5"):
        check_samples(samples, tokenize)


def test_prompt_checks_take_seeds_as_the_generator_does(tokenize):
    """PyTorch's generator on the CPU takes the last 32 bits of a seed."""
    seeds = 5, 5 + 2**32
    noise = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    assert torch.equal(*noise)
    samples = [sample(i, "a red ball on a gray floor", seed) for i, seed in enumerate(seeds)]
    with pytest.raises(UserError, match=r"last 32 bits of the seed \(4294967301 and 5\)"):
        check_samples(samples, tokenize)
    assert check_samples([samples[0], sample(1, samples[0].prompt, 6)], tokenize) == ()


def test_prompt_checks_find_a_leak_in_two_spellings_and_splits(tokenize):
    samples = [
        sample(0, "a red ball on a gray floor", 5),
        sample(1, "A red ball on a gray floor", 6, "test"),
    ]
    with pytest.raises(UserError, match=r"test and train\. Fix: .*one split of prompts\.files, "):
        check_samples(samples, tokenize)
    samples = [replace(one, origin="") for one in samples]
    with pytest.raises(UserError, match=r"train\. Fix: give prompts\.items or prompts\.files "):
        check_samples(samples, tokenize)


def test_items_that_are_one_prompt_to_the_model_are_accepted_if_they_are_written_alike():
    ends = [f"a {color} cube" for color in ("red", "blue", "green", "yellow", "pink", "cyan")]

    def plan_of_items(items):
        return plan_study(parse_study({"prompts": {"items": items, "samples": len(items)}}))

    short = ["a red ball", "a blue ball", "a green ball"]
    with pytest.raises(UserError, match=r"items\[\d\] .* Fix: write both prompts alike, or"):
        plan_of_items([*short, *(LONG + end for end in ends)])
    assert len(plan_of_items([*short, *(LONG for _ in ends)]).samples) == 9
    assert len(plan_of_items([*short, *(end + LONG for end in ends)]).samples) == 9


def test_prompt_checks_take_prompts_that_differ_after_truncation_as_one(tokenize):
    samples = [sample(0, LONG + "a cube", 5), sample(1, LONG + "a cone", 5)]
    with pytest.raises(UserError, match="the same prompt as"):
        check_samples(samples, tokenize)


def test_prompt_checks_report_truncated_prompts(tokenize):
    assert check_samples([sample(0, "a red ball on a gray floor", 1)], tokenize) == ()
    (note,) = check_samples([sample(0, LONG + "a cube", 1), sample(1, "a red car", 1)], tokenize)
    assert note.startswith("1 of 2 prompts is longer than the model reads: ")
    assert " loses 'a red ball on a gray floor" in note


@pytest.mark.parametrize(
    ("name", "encoders", "whole"),
    [
        ("sd1", "than the model reads: ", 0),
        ("sdxl", "than the model reads: ", 0),
        ("sd3", "than text_encoder and text_encoder_2 read (24 tokens): ", 1),
        ("flux", "than text_encoder reads (24 tokens): ", 1),
    ],
)
def test_prompt_checks_name_the_encoder_that_cuts(tmp_path, name, encoders, whole):
    """Two ends beyond CLIP's length give equal images only if no other encoder reads them."""
    folder = tiny_models.write(name, tmp_path / "m")
    tokenize = PromptTokenizer(folder, detect_architecture(folder).diffusers_class)
    start = "a red ball on a gray floor " * 4
    (note,) = check_samples([sample(0, start + "a cube", 1)], tokenize)
    assert note.startswith(f"1 of 1 prompts is longer {encoders}")
    samples = [sample(0, start + "a cube", 5), sample(1, start + "a cone", 5)]
    if whole:
        assert len(check_samples(samples, tokenize)) == 1
    else:
        with pytest.raises(UserError, match="the same prompt as"):
            check_samples(samples, tokenize)


def test_the_plan_of_a_prompt_file_names_both_lines(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "prompt,seed,split\nA Red Lemon on a gray floor,5,train\n"
        "a red  lemon on a gray floor,5,test\n"
        "a blue car on a black floor,1,validation\n"
    )
    with pytest.raises(UserError, match=r"p\.csv, line 3 .*p\.csv, line 2"):
        plan_study(parse_study({"prompts": {"files": str(path)}}))


@pytest.mark.parametrize("key", ["prompts", "images"])
def test_a_last_seed_beyond_the_store_is_refused(key, tmp_path):
    from PIL import Image

    content = {"prompts": {"seed": 2**63 - 3, "samples": 12}}
    if key == "images":
        for i in range(12):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
        content = {"source": "images", "images": {"folder": str(tmp_path), "seed": 2**63 - 3}}
    with pytest.raises(UserError, match=rf"{key}\.seed: the last of 12 samples would have seed"):
        make_samples(parse_study(content))
    content[key]["seed"] -= 9
    assert make_samples(parse_study(content))[-1].seed == 2**63 - 1


def test_plan_names_words_that_the_model_was_not_trained_on():
    items = ["a red car on a gray floor", "a zebra on a gray floor", "a lemon in the rain, a zebra"]
    notes = plan_study(parse_study({"prompts": {"items": items}})).notes
    (note,) = (note for note in notes if "words" in note)
    assert note.startswith("2 of 3 prompts have words or symbols that the model was not trained on")
    assert note.endswith("'zebra', 'in', 'the', 'rain'")
    assert plan_study(parse_study({"prompts": {"samples": 60}})).notes == ()


def test_plan_says_that_a_negative_prompt_or_a_caption_is_cut(tokenize, tmp_path):
    assert long_text_notes("prompts.negative", "a blue ring", tokenize) == ()
    assert long_text_notes("prompts.negative", "", tokenize) == ()
    study = parse_study({"prompts": {"samples": 6, "negative": LONG + "a cube"}})
    (note,) = (note for note in plan_study(study).notes if "negative" in note)
    assert note.startswith("prompts.negative is longer than the model reads: it loses ")
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{name}.png")
    images = {"folder": str(tmp_path), "caption": LONG + "a cube"}
    (note,) = (
        note
        for note in plan_study(parse_study({"source": "images", "images": images})).notes
        if "caption" in note
    )
    assert note.startswith("images.caption is longer than the model reads: it loses ")


def test_long_text_notes_name_the_encoders_that_cut(tmp_path):
    folder = tiny_models.write("sd3", tmp_path / "m")
    tokenize = PromptTokenizer(folder, detect_architecture(folder).diffusers_class)
    (note,) = long_text_notes("prompts.negative", LONG, tokenize)
    assert note.startswith(
        "prompts.negative is longer than text_encoder and text_encoder_2 read (24 tokens): it loses"
    )


@pytest.mark.parametrize(("character", "name"), [("\u200b", "U+200B"), ("\ufeff", "U+FEFF")])
def test_plan_names_invisible_characters_in_prompts(character, name):
    items = [f"a red{character} cube", "a blue cube", "a green cube"]
    notes = plan_study(parse_study({"prompts": {"items": items}})).notes
    (note,) = (note for note in notes if "invisible" in note)
    assert note.startswith("1 of 3 prompts has invisible characters")
    assert name in note
    assert note.isprintable()
