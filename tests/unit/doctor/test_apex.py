"""NVIDIA's apex: where it breaks a run. (PyPI's: test_doctor.py.)"""

import shutil
from dataclasses import replace

from megatron_nft.doctor.packages import check_apex
from tests.unit.doctor.machines import complaints, install


def nvidias_apex(folder, *extensions):
    """A checkout's Python part, and what of it is compiled."""
    install(folder, "apex", "0.1", "apex/multi_tensor_apply", "apex/optimizers", "apex/amp")
    for name in extensions:
        (folder / f"{name}.cpython-312-x86_64-linux-gnu.so").touch()


def test_nvidias_apex_breaks_a_run_on_a_cpu(machine, site):
    nvidias_apex(site)
    assert complaints(machine) == {"apex": "FAIL NVIDIA's, on a machine without a GPU"}


def test_nvidias_apex_on_pythonpath_breaks_it_as_well(machine, tmp_path):
    nvidias_apex(tmp_path / "checkout")
    for metadata in (tmp_path / "checkout").glob("*.dist-info"):
        shutil.rmtree(metadata)
    there = replace(machine, import_path=(tmp_path / "checkout",))
    assert complaints(there) == {}, "a folder without __init__.py is no package: a clone that lies beside us"
    (tmp_path / "checkout/apex/__init__.py").touch()
    assert complaints(there) == {"apex": "FAIL NVIDIA's, on a machine without a GPU"}
    (finding,) = check_apex(there)
    assert f"take {tmp_path / 'checkout/apex'} away from where Python looks" in finding.remedy


def test_nvidias_apex_on_gpus(gpus, site):
    nvidias_apex(site)
    assert complaints(gpus) == {"apex": "warn NVIDIA's, without amp_C"}
    (site / "amp_C.cpython-312-x86_64-linux-gnu.so").touch()
    assert complaints(gpus) == {}
