"""One hardware queue where it helps, and in time: before the process touches CUDA."""

import os
import subprocess
import sys

import pytest

from megatron_nft.actor.connections import VARIABLE, limit_connections

H100, B200 = "9.0", "10.0"


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
    ("capability", "layout", "expected"),
    [(H100, (2, 1), "1"), (H100, (1, 2), "1"), (H100, (1, 1), None), (B200, (2, 1), None), ("8.0", (4, 2), "1")],
)
def test_before_blackwell_where_layers_exchange_messages(capability, layout, expected, devices, monkeypatch):
    devices(capability, capability)
    limit_connections(tp=layout[0], cp=layout[1])
    assert os.environ.get(VARIABLE) == expected
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_value_of_ones_own_stays_and_no_answer_is_no_device(devices, monkeypatch):
    devices(H100)
    monkeypatch.setenv(VARIABLE, "8")
    limit_connections(tp=2, cp=1)
    assert os.environ[VARIABLE] == "8"
    devices("[N/A]")
    limit_connections(tp=2, cp=1)
    monkeypatch.setenv("PATH", "")
    limit_connections(tp=2, cp=1)
    assert VARIABLE not in os.environ


def test_smoke_asks_before_torch_is_there(devices):
    devices(H100)
    code = """
import os, sys
from megatron_nft.smoke import __main__ as smoke
real, seen = smoke.limit_connections, []
smoke.limit_connections = lambda **layout: (seen.append("torch" in sys.modules), real(**layout))
status = smoke.main(["--tp", "2"])
print(status, seen, os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "2 [False] 1\n"  # one process is too few for two ranks
