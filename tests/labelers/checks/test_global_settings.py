"""Settings of torch and NumPy that a labeler's code changes, after its import, load and call."""

import contextlib
import sys
from functools import partial

import numpy as np
import pytest
import torch

from ldmprobe_core.errors import LdmprobeError
from ldmprobe_core.labelers.base import LabelerEntry
from ldmprobe_core.labelers.checks.global_settings import restored_settings
from ldmprobe_core.labelers.checks.results import CheckedLabeler, load_checked
from ldmprobe_core.labelers.functions import import_labeler
from ldmprobe_core.study.probe_sections import LabelerSpec

IMAGES = np.zeros((1, 4, 4, 3), np.uint8)

CHANGES = {
    "data type": lambda: torch.set_default_dtype(torch.float64),
    "device": lambda: torch.set_default_device("meta"),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
    "autocast on CUDA": lambda: torch.set_autocast_enabled("cuda", True),
    "NumPy": lambda: np.seterr(all="raise"),
}


def settings():
    """Settings that change results of later code in the same process."""
    return {
        "new tensor": (torch.empty(0).dtype, torch.empty(0).device.type),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "NumPy": np.geterr(),
    }


@pytest.fixture(params=CHANGES.values(), ids=CHANGES.keys())
def change(request):
    """Function that changes a setting; without the code under test it would stay changed."""
    yield request.param
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = False
    torch.set_autocast_enabled("cpu", False)
    torch.set_autocast_enabled("cuda", False)
    np.seterr(all="warn", under="ignore")


def labels(change, fails, images):
    change()
    if fails:
        raise ValueError("no labels")
    return np.zeros(images.shape[:3])


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("method", ["__call__", "try_on"])
def test_a_call_leaves_the_settings_as_they_were(change, method, fails):
    labeler = CheckedLabeler("depth", "mine", partial(labels, change, fails), None, True)
    before = settings()
    with pytest.raises(LdmprobeError) if fails else contextlib.nullcontext():
        getattr(labeler, method)(IMAGES)
    assert settings() == before


def test_loading_leaves_the_settings_as_they_were(change):
    def load(spec, device):
        change()
        return partial(labels, lambda: None, False)

    before = settings()
    load_checked(LabelerEntry(load), "depth", LabelerSpec(name="mine"), torch.device("cpu"), None)
    assert settings() == before


def test_an_import_leaves_the_settings_as_they_were(tmp_path, monkeypatch):
    (tmp_path / "double_labels.py").write_text(
        "import torch\n\ntorch.set_default_dtype(torch.float64)\n\n\n"
        "def depth(images):\n    return images.mean(-1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = settings()
    try:
        import_labeler("depth", "double_labels:depth")
        assert settings() == before
    finally:
        torch.set_default_dtype(torch.float32)
        sys.modules.pop("double_labels", None)


def test_settings_that_were_not_the_defaults_are_kept():
    with torch.autocast("cpu", torch.float16), np.errstate(all="raise"):
        before = settings(), torch.get_autocast_dtype("cpu")
        assert before[0]["autocast"] == (True, False)
        with restored_settings():
            assert (settings(), torch.get_autocast_dtype("cpu")) == before
            torch.set_autocast_enabled("cpu", False)
            np.seterr(all="ignore")
        assert (settings(), torch.get_autocast_dtype("cpu")) == before


def test_a_precision_that_two_interfaces_of_torch_set_is_restored():
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this version of torch has one interface")
    before = settings()
    with restored_settings():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert settings() == before
