"""Maps beside source images, of properties that the study has and of others."""

import hashlib

import numpy as np
from PIL import Image

from ldmprobe_core.pipeline.planning.plan import plan_study
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.properties import PROPERTIES, Property


def test_maps_are_those_of_the_study_whatever_else_the_process_has_registered(
    tmp_path, monkeypatch
):
    """Content hash of pictures and maps by hand; maps of another study's property have no part."""
    for name in ("wet", "dry", "astray"):
        monkeypatch.setitem(PROPERTIES, name, Property(name=name, kind="scalar"))
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = ["a.png", "b.png", "c.astray.png", "c.png"]
    content = hashlib.sha256()
    for name in names:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / name)
        stem = name.removesuffix(".png")
        for prop in ("wet", "dry", "depth"):
            np.save(folder / f"{stem}.{prop}.npy", rng.random((64, 64)).astype(np.float32))
        for file in (name, *(f"{stem}.{prop}.npy" for prop in ("depth", "dry", "wet"))):
            content.update(file.encode() + hashlib.sha256((folder / file).read_bytes()).digest())
    np.save(folder / "a.astray.npy", np.zeros((64, 64), np.float32))
    study = parse_study(
        {
            "source": "images",
            "images": {"folder": str(folder)},
            "properties": {name: {"kind": "scalar"} for name in ("wet", "dry")},
            "labels": {
                "depth": "maps",
                "wet": "maps",
                "foreground": None,
                "shading": None,
                "class": None,
            },
        }
    )
    plan = plan_study(study)
    assert [sample.source_image for sample in plan.samples] == names
    assert plan.study.images.content_hash == content.hexdigest()[:16]
    assert plan.exact_properties == ("depth", "dry", "wet")
    assert any("not read: a.astray.npy" in note for note in plan.notes)
    run = prepare_run(plan.study, str(tmp_path / "store"))
    assert run.exact_properties == ["depth", "dry", "wet"]
