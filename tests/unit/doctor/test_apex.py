"""NVIDIA's apex: where it breaks a run, and the one setting that needs it. (PyPI's: test_doctor.py.)"""

from megatron_nft.doctor.packages import check_fusion
from megatron_nft.doctor.recipe import check_recipe
from tests.unit.doctor.test_doctor import complaints, gpus, install, machine, site  # noqa: F401 (fixtures)


def nvidias_apex(folder, *extensions):
    """A checkout's Python part, and what of it is compiled."""
    install(folder, "apex", "0.1", "apex/multi_tensor_apply", "apex/optimizers", "apex/amp")
    for name in extensions:
        (folder / f"{name}.cpython-312-x86_64-linux-gnu.so").touch()


def test_nvidias_apex_breaks_a_run_on_a_cpu(machine, site):  # noqa: F811
    nvidias_apex(site)
    assert complaints(machine) == {"apex": "FAIL NVIDIA's, on a machine without a GPU"}


def test_nvidias_apex_on_gpus(gpus, site):  # noqa: F811
    nvidias_apex(site)
    assert complaints(gpus) == {"apex": "warn NVIDIA's, without amp_C"}
    (site / "amp_C.cpython-312-x86_64-linux-gnu.so").touch()
    assert complaints(gpus) == {}


def test_fused_gradient_accumulation_needs_a_part_of_apex(gpus, site):  # noqa: F811
    (finding,) = check_fusion(gpus)
    assert (finding.status, finding.value) == ("FAIL", "no fused_weight_gradient_mlp_cuda")
    assert "set it to false, or install apex" in finding.remedy
    nvidias_apex(site, "amp_C", "fused_weight_gradient_mlp_cuda")
    (finding,) = check_fusion(gpus)
    assert finding.status == "ok"
    recipe = ["launch/recipes/quickstart.toml", ["cluster.device=cuda", "actor.gradient_accumulation_fusion=true"]]
    assert "fusion" in {found.check for found in check_recipe(gpus, *recipe)}
    assert "fusion" not in {found.check for found in check_recipe(gpus, recipe[0])}
