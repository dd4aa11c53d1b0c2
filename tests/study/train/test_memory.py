"""Memory that a process frees is its own for as long as it runs, where glibc manages it."""

import subprocess
import sys

import pytest

from study.train import memory

STEPS = """
import resource
import torch
from study.train import memory
{set_up}
for step in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.empty({numbers}).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _pages(set_up: str, numbers: int) -> int:
    """How many pages the last of six steps gets from the system."""
    command = [sys.executable, "-c", STEPS.format(set_up=set_up, numbers=numbers)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(memory.mallopt() is None, reason="another C library than glibc")
def test_a_step_gets_no_new_pages():
    numbers = 10 * 2**20  # 40 MiB, more than glibc keeps by itself
    assert _pages("", numbers) > 3 * 40 * 2**20 / 4096 / 600  # pages of 2 MiB at the most
    assert _pages("memory.keep_freed()", numbers) < 50


def test_elsewhere_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.mallopt() is None
    memory.keep_freed()
