"""Machines made of folders, healthy ones, to be broken by the tests."""

from pathlib import Path

import pytest

from megatron_nft.doctor.machine import Machine
from megatron_nft.doctor.system import GIB
from tests.unit.doctor.machines import driver, install

PINS = """torch==2.13.0
megatron-core==0.16.1; python_version < "3.12"
megatron-core==0.19.2; python_version >= "3.12"
tqdm==4.70.1
"""


@pytest.fixture
def site(tmp_path) -> Path:
    site = tmp_path / "site-packages"
    install(site, "torch", "2.13.0+cpu", "torch")
    (site / "torch/version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = None\n")
    install(site, "megatron-core", "0.16.1")
    install(site, "tqdm", "4.70.1")
    return site


@pytest.fixture
def machine(tmp_path, site) -> Machine:
    """A healthy CPU machine."""
    (tmp_path / "requirements.txt").write_text(PINS)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 25000000 kB\nMemAvailable:   20000000 kB\n")
    (tmp_path / "shm").mkdir()
    return Machine(
        site_packages=(site,),
        requirements=(tmp_path / "requirements.txt",),
        environment={"OMP_NUM_THREADS": "1"},
        python=(3, 11),
        cores=2,
        open_files=65536,
        proc=tmp_path / "proc",
        cgroup=tmp_path / "cgroup",
        shared_memory=tmp_path / "shm",
        disk=tmp_path,
        disk_usage=lambda path: (100 * GIB, 50 * GIB, 50 * GIB),
    )


@pytest.fixture
def gpus(machine) -> Machine:
    """The same with 8 GPUs, a driver for CUDA 13, and what they need."""
    (machine.proc / "driver/nvidia/gpus").mkdir(parents=True)
    for number in range(8):
        (machine.proc / f"driver/nvidia/gpus/{number}").mkdir()
    driver(machine, "580.95.05")
    (site,) = machine.site_packages
    (site / "torch/version.py").write_text("cuda: Optional[str] = '13.0'\n")
    for part in ("", "-cu13", "-torch"):
        install(site, f"transformer-engine{part}", "2.20.2")
    return machine


@pytest.fixture
def recipe(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    quickstart = Path("tests/assets/quickstart/model")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_bytes((quickstart / name).read_bytes())
    (tmp_path / "train.jsonl").write_text('{"question": "1 + 1 =", "answer": "2"}\n')
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'[model]\npath = "{model}"\n[data]\ntrain = ["{tmp_path}/train.jsonl"]\nmax_prompt_tokens = 64\n'
        f'[rollout]\nmax_answer_tokens = 64\n[run]\ndir = "{tmp_path}/runs"\n[cluster]\ndevice = "cpu"\n'
    )
    return path
