"""A batch with values that are not finite fails, and nothing of it is recorded as done."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from run_helpers import small_study
from safetensors.torch import load_file, save_file

from ldmprobe_core.errors import RunError
from ldmprobe_core.models.output_checks import require_finite_labels
from ldmprobe_core.pipeline.generate import generate_batch
from ldmprobe_core.pipeline.label import label_batch
from ldmprobe_core.pipeline.prepare import prepare_run
from ldmprobe_core.storage.run import Run
from ldmprobe_core.storage.verify import find_corrupt_chunks


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_generate_batch_with_a_nan_in_a_weight_marks_nothing(part, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(small_study("x", tiny_model, 10).model.source, folder)
    path = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("conv_out.weight") and "encoder" not in key)
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, path)
    study = small_study("broken", tiny_model, 10)
    study = study.model_copy(
        update={"model": study.model.model_copy(update={"source": str(folder)})}
    )
    run = prepare_run(study, str(tmp_path / "runs"))
    with pytest.raises(RunError, match=f"{part}|step"):
        generate_batch(run.url, 0)
    assert not Run(run.url).progress.is_done("generated", 0)
    assert not any(Path(run.url).glob("images/image/c/**/*"))
    assert list(find_corrupt_chunks(run)) == []


def test_label_batch_with_a_constant_image_marks_nothing(tiny_model, tmp_path):
    run = prepare_run(small_study("black", tiny_model, 10), str(tmp_path))
    generate_batch(run.url, 0)
    image = run.open("images", require_complete=False).image
    batch = slice(0, image.encoding["chunks"][0])
    run.write("images", {"image": np.zeros_like(image[batch].values)}, sample=batch)
    with pytest.raises(RunError, match="have one colour"):
        label_batch(run.url, 0)
    assert not run.progress.is_done("labeled", 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_require_finite_labels_names_property_and_sample(value):
    maps = np.zeros((3, 4, 4), np.float32)
    require_finite_labels("depth", maps, [7, 8, 9])
    maps[1, 2, 3] = value
    with pytest.raises(RunError, match=r"depth.*8"):
        require_finite_labels("depth", maps, [7, 8, 9])
