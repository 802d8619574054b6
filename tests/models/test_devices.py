"""Measured memory of a process."""

import re
from pathlib import Path

import pytest
import torch

from ldmprobe_core.models.devices import peak_memory, pick_device

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.exists(), reason="needs the proc file system of Linux")
def test_peak_memory_is_the_kernels_high_water_mark():
    measured = peak_memory()["memory"]
    mark = int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) * 1024
    # The kernel updates both figures at slightly different moments.
    assert measured == pytest.approx(mark, rel=0.05)


def test_pick_device_turns_off_tf32():
    """Labels would otherwise depend on the type of GPU, in processes that load no model."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    pick_device("cpu")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
