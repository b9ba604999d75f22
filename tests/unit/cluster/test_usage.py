"""What a process notes of itself: when it was at which verb, and its memory at its peak, beside the kernel's figure."""

import subprocess
import sys
import time

import pytest

from megatron_nft.cluster.usage import GIB, TOGETHER_S, UsageLog, host_now_bytes

PEAKS = """
from pathlib import Path
from megatron_nft.cluster.usage import GIB, UsageLog
log = UsageLog()
with log.during("small"):
    x = bytearray(20 << 20)
with log.during("large"):
    y = bytearray(300 << 20)
    y[::4096] = b"x" * len(y[::4096])
    measured = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / GIB  # now, with y
    del y
with log.during("small"):
    pass
peaks = log.take().host_gib
print(peaks["small"], peaks["large"], measured, log.take().host_gib)
"""


def test_the_peak_of_each_verb_is_its_own():
    """In a process of its own, beside what it holds when it holds most."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    small, large, measured, rest = done.stdout.split()
    assert float(large) == pytest.approx(float(measured), rel=0.05)
    assert float(large) - float(small) > 250 / 1024 and rest == "{}"


def test_calls_that_follow_each_other_are_one_span():
    log, begin = UsageLog(), time.time()
    for _ in range(3):
        with log.during("advance"):
            time.sleep(0.01)
    with log.during("update"):
        time.sleep(0.01)
    time.sleep(TOGETHER_S * 1.2)
    with log.during("update"):
        pass
    spans = log.take().spans
    assert [name for name, _, _ in spans] == ["advance", "update", "update"]
    assert 0.03 <= spans[0][2] - spans[0][1] < 0.3 and begin <= spans[0][1] and spans[-1][2] <= time.time()
    assert log.take().spans == []


def test_children_count_as_an_engines_workers_do():
    child = subprocess.Popen([sys.executable, "-c", "x = b'x' * (200 << 20); print(1, flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        child.stdout.readline()
        log = UsageLog()
        with log.during("advance"):
            pass
        assert log.take().host_gib["advance"] > host_now_bytes() / GIB + 0.19
    finally:
        child.communicate(b"\n")
