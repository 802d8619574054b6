"""Lookup, loading and conversion of labelers' weights."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import torch
from labeler_weights import WRITERS, classifier, glpn
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification, ViTModel

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers import tabletop
from ldmprobe_core.labelers.registry import check_labeler, find_labeler, load_labeler
from ldmprobe_core.labelers.weights import convert
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.study.readers.hub_cache import HubRepository, PublishedFile

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("prop", "spec", "words"),
    [
        ("shading", {"name": "intrinsic"}, ["intrinsic is not installed", "compphoto"]),
        ("shading", {"name": "retinex", "weights": "x"}, ["takes no weights"]),
        ("depth", {"name": "midas"}, ["Intel/dpt-large", "hf download Intel/dpt-large"]),
        ("depth", {"name": "depth-anything"}, ["weights are missing"]),
        ("depth", {"name": "depth-anything", "weights": "/none/such"}, ["no such folder"]),
        ("foreground", {"name": "tracer"}, ["weights are missing", "tracer_b7"]),
        ("foreground", {"name": "inspyrenet", "weights": "/none.safetensors"}, ["are missing"]),
        ("foreground", {"name": "tabletop", "weights": "/none"}, ["'/none' are not a folder"]),
        ("class", {"name": "vgg16", "weights": "/none.safetensors"}, ["vgg16-397923af.pth"]),
    ],
)
def test_check_labeler_names_missing_weights_with_a_remedy(prop, spec, words):
    with pytest.raises(UserError) as caught:
        check_labeler(prop, LabelerSpec(**spec))
    message = str(caught.value)
    assert message.startswith(f"labels.{prop} is '{spec['name']}': ")
    for word in words:
        assert word in message


def test_weights_of_the_embedded_labelers_that_the_study_misplaces_are_named_by_their_path(
    tmp_path,
):
    message = (
        rf"^labels\.depth is 'tabletop': .*'{re.escape(str(tmp_path))}' lack labelers/maps\.safet.*"
        "Fix: give a model folder .*or leave weights out"
    )
    with pytest.raises(UserError, match=message) as refused:
        check_labeler("depth", LabelerSpec(name="tabletop", weights=str(tmp_path)))
    assert "reinstall" not in str(refused.value)


def test_missing_weights_of_the_package_itself_need_a_new_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(tabletop, "MODEL_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"maps\.safetensors are missing from .*Fix: reinstall"):
        check_labeler("depth", LabelerSpec(name="tabletop"))


def test_require_package_names_the_installation(monkeypatch):
    real = importlib.util.find_spec
    gone = {"carvekit", "transparent_background"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in gone else real(n))
    for name, words in (
        ("tracer", "pip install --no-deps carvekit"),
        ("inspyrenet", r"pip install 'ldmprobe\[inspyrenet\]'"),
    ):
        with pytest.raises(UserError, match=words):
            check_labeler("foreground", LabelerSpec(name=name))


def test_convert_turns_a_pickle_that_find_file_refuses_into_safetensors(tmp_path):
    torch.save({"state_dict": {"a": torch.arange(3.0), "b": torch.ones(2)}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"are a pickle.*labelers\.weights .*w\.pth"):
        check_labeler("foreground", LabelerSpec(name="tracer", weights=str(tmp_path / "w.pth")))
    out = convert(tmp_path / "w.pth")
    assert out == tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="do not fit the network"):
        load_labeler("class", LabelerSpec(name="vgg16", weights=str(out)), CPU)


def test_convert_leaves_out_what_is_no_tensor_and_refuses_a_file_without_any(tmp_path):
    weights = {"a": torch.arange(3.0), "epoch": 5, "name": "net"}
    for content in (weights, {"epoch": 5, "state_dict": weights}):
        torch.save(content, tmp_path / "w.pth")
        assert {k: v.tolist() for k, v in load_file(convert(tmp_path / "w.pth")).items()} == {
            "a": [0.0, 1.0, 2.0]
        }
    for content, words in (
        ({"epoch": 5, "model": {"a": torch.ones(2)}}, r"but a dict \(epoch, model\)"),
        ({"state_dict": 3}, r"but a dict \(state_dict\)"),
        ([torch.ones(2)], r"but a list"),
    ):
        torch.save(content, tmp_path / "none.pth")
        with pytest.raises(UserError, match=rf"none\.pth: it holds no tensors.*{words}.*Fix: save"):
            convert(tmp_path / "none.pth")
    assert not (tmp_path / "none.safetensors").exists()


def test_convert_names_a_file_that_holds_a_network_or_nothing_that_can_be_read(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "network.pth")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").touch()
    torch.save({"a": torch.ones(2)}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    for name in ("network", "text", "empty", "cut", "missing", ""):
        with pytest.raises(UserError, match=rf"{name}(\.pth)?: it .*\. Fix: .*torch\.save"):
            convert(tmp_path / f"{name}.pth" if name else tmp_path)


def test_find_folder_refuses_a_folder_of_pickles(tmp_path):
    glpn(tmp_path / "g")
    weights = tmp_path / "g" / "model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="holds no safetensors"):
        check_labeler("depth", LabelerSpec(name="transformers", weights=str(tmp_path / "g")))


def changed(path, lost, **replaced):
    """Write a weight file again without one of its tensors, or with others in their place."""
    state = load_file(path)
    assert lost is None or lost in state
    save_file({k: v for k, v in (state | replaced).items() if k != lost}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("prop", "name", "file", "lost"),
    [
        ("class", "transformers", "model", "classifier.weight"),
        ("depth", "midas", "model", "head.head.0.weight"),
        ("depth", "depth-anything", "model", "neck.fusion_stage.layers.1.projection.bias"),
        ("depth", "transformers", "model", "decoder.stages.1.fusion.convolutional_layer1.0.bias"),
        ("shading", "marigold", "unet/diffusion_pytorch_model", "conv_out.weight"),
        ("shading", "marigold", "vae/diffusion_pytorch_model", "decoder.conv_in.bias"),
        ("shading", "marigold", "text_encoder/model", "embeddings.token_embedding.weight"),
    ],
)
def test_labelers_without_a_tensor_are_refused_before_they_label(tmp_path, prop, name, file, lost):
    folder = tmp_path / "labeler"
    WRITERS[prop, name](folder)
    spec = LabelerSpec(name=name, weights=str(folder))
    assert len(check_labeler(prop, spec)) == 16
    changed((folder / file).with_suffix(".safetensors"), lost)
    words = rf"labeler's weights '.*{(folder / file).parent.name}' lack the tensor \S*{lost}, .*Fix"
    with pytest.raises(UserError, match=rf"^labels\.{prop} is '{name}': the {words}"):
        check_labeler(prop, spec)
    with pytest.raises(UserError, match=words):
        load_labeler(prop, spec, CPU)


def test_check_labeler_refuses_a_backbone_without_its_classifier(tmp_path):
    """The library would load it with a random classifier, another one each time."""
    classifier(tmp_path / "whole")
    ViTModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "part")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "part" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    drawn = [
        ViTForImageClassification.from_pretrained(tmp_path / "part").classifier.weight
        for _ in range(2)
    ]
    assert not torch.equal(*drawn)
    spec = LabelerSpec(name="transformers", weights=str(tmp_path / "part"))
    with pytest.raises(UserError, match=r"lack the tensor classifier\.bias and 1 more, .*trained"):
        check_labeler("class", spec)


def test_check_labeler_names_a_tensor_of_another_shape_and_a_damaged_file(tmp_path):
    classifier(tmp_path / "vit")
    path = tmp_path / "vit" / "model.safetensors"
    spec = LabelerSpec(name="transformers", weights=str(tmp_path / "vit"))
    changed(path, None, **{"classifier.weight": torch.zeros(5, 16)})
    for use in (lambda: check_labeler("class", spec), lambda: load_labeler("class", spec, CPU)):
        with pytest.raises(
            UserError, match=r"classifier\.weight in shape \(5, 16\), not \(3, 16\)"
        ):
            use()
    path.write_bytes(path.read_bytes()[:-100])
    for use in (lambda: check_labeler("class", spec), lambda: load_labeler("class", spec, CPU)):
        with pytest.raises(UserError, match=r"do not load \(.*\)\. Fix: fetch them again"):
            use()


@pytest.mark.timeout(60)
def test_check_labeler_refuses_a_folder_without_a_config(tmp_path):
    """Any other folder, such as the home folder, would be searched and hashed as a whole."""
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"labels\.depth .*the folder holds no config\.json.*Fix"):
        check_labeler("depth", LabelerSpec(name="midas", weights=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no safetensors file"):
        check_labeler("depth", LabelerSpec(name="midas", weights=str(tmp_path)))


@pytest.mark.parametrize("name", ["preprocessor_config.json", "model.safetensors"])
def test_check_labeler_refuses_a_folder_with_a_pipe(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / name)
    spec = LabelerSpec(name="depth-anything", weights=str(tmp_path))
    with pytest.raises(UserError, match=rf"{name} is a pipe or a device\. Fix: remove it"):
        check_labeler("depth", spec)


@pytest.mark.parametrize(
    ("prop", "spec", "sources"),
    [
        ("depth", {"name": "midas"}, [HubRepository("Intel/dpt-large")]),
        ("depth", {"name": "depth-anything", "weights": "a/b", "revision": "c"},
         [HubRepository("a/b", "c")]),
        ("depth", {"name": "depth-anything"}, []),
        ("shading", {"name": "retinex"}, []),
        ("shading", {"name": "marigold"}, [HubRepository("prs-eth/marigold-iid-lighting-v1-1")]),
        ("foreground", {"name": "tracer", "weights": "/none/t.safetensors"},
         [PublishedFile(Path("/none/t.safetensors"), "tracer_b7.pth", "Carve/tracer_b7")]),
        ("foreground", {"name": "tracer", "weights": "/none/t.pth"}, []),
        ("foreground", {"name": "tabletop"}, []),
    ],
)  # fmt: skip
def test_labelers_list_the_sources_of_their_weights(prop, spec, sources):
    assert find_labeler(prop, spec["name"]).published(LabelerSpec(**spec)) == sources


def test_single_files_have_published_checksums_and_are_needed_once(tmp_path):
    weights = tmp_path / "w.safetensors"
    for prop, name, checksum in (
        ("class", "vgg16", ("sha256", "397923af")),
        ("foreground", "inspyrenet", ("md5", "9efdbfbcc49b79ef0f7891c83d2fd52f")),
    ):
        spec = LabelerSpec(name=name, weights=str(weights))
        (file,) = find_labeler(prop, name).published(spec)
        assert (file.target, file.checksum) == (weights, checksum)
        assert file.origin.endswith(f"/{file.name}")
    weights.touch()
    assert find_labeler("class", "vgg16").published(spec) == []
