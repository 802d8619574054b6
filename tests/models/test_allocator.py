"""Memory that a process keeps after it was freed."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import os
from ldmprobe_core.models.allocator import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

assert keep_freed_memory()
before = resident()
for size in (20 << 20, 100 << 20):
    block = bytearray(size)
    del block
    print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_keep_freed_memory_keeps_small_blocks_and_returns_large_ones():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    after_small, after_large = (int(line) for line in done.stdout.split())
    assert after_small > 19 << 20
    assert after_large < 30 << 20
