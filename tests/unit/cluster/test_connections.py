"""One hardware queue where it helps, and in time: before the process touches CUDA."""

import os
import subprocess
import sys

import pytest

from megatron_nft.cluster.connections import VARIABLE, connections, device_generation


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """Their compute capabilities, as nvidia-smi prints them."""

    def make(*capabilities):
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo {each}\n" for each in capabilities))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv(VARIABLE, raising=False)

    return make


@pytest.mark.parametrize(
    ("generation", "layout", "expected"),
    [(9, (2, 1), {VARIABLE: "1"}), (9, (1, 2), {VARIABLE: "1"}), (8, (4, 2), {VARIABLE: "1"}), (9, (1, 1), {}),
     (10, (2, 1), {}), (12, (8, 1), {}), (None, (2, 1), {})],
)  # fmt: skip
def test_before_blackwell_where_layers_exchange_messages(generation, layout, expected, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert connections(tp=layout[0], cp=layout[1], generation=generation) == expected


def test_a_value_of_ones_own_stays(monkeypatch):
    monkeypatch.setenv(VARIABLE, "8")
    assert connections(tp=2, cp=1, generation=9) == {}


def test_devices_are_known_without_cuda(devices, monkeypatch):
    devices("9.0", "9.0")
    assert device_generation() == 9
    devices("12.0", "10.3")
    assert device_generation() == 10
    devices("[N/A]")
    assert device_generation() is None
    monkeypatch.setenv("PATH", "")
    assert device_generation() is None


def test_smoke_takes_it_before_torch_is_there(devices):
    devices("9.0")
    code = """
import os, sys
from megatron_nft.smoke import __main__ as smoke
real, seen = smoke.connections, []
smoke.connections = lambda **layout: (seen.append("torch" in sys.modules), real(**layout))[1]
status = smoke.main(["--tp", "2"])
print(status, seen, os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "2 [False] 1\n"  # one process is too few for two ranks
