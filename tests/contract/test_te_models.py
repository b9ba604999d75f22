"""TransformerEngine's models as Megatron builds them for a GPU: every family in every kind of layout, precision and
switch has the names, shapes and marks of families/, and the checkpoint's keys; the optimizer is TransformerEngine's.
"""

import pytest

from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.parameters import parameters
from tests.contract.models import build
from tests.parallel.families import FAMILIES, MIXTURES, OTHERS, make_folder
from tests.parallel.ranks import run_ranks

STAGE = "tests.contract.played"
SP = {"tp": 2, "sequence_parallel": True}
EDGES = {"num_layers_at_start_in_bf16": 1, "num_layers_at_end_in_bf16": 1}
FP8 = ("fp8-delayed", "fp8-tensorwise", "fp8-blockwise")
LAYOUTS = [
    {},
    {"tp": 2},
    SP,
    {"pp": 2},
    {"pp": 2, "vpp": 2},
    {"cp": 2},
    {"dp": 2, "overlap_grad_reduce": True, "overlap_param_gather": True},
    SP | {"precision": "fp8-tensorwise"},
    {"pp": 2, "precision": "fp8-tensorwise", **EDGES},
]
"""With every family: the families differ in what the layouts cut."""
SETTINGS = [
    {"precision": "fp32"},
    *({"precision": precision} for precision in (*FP8, "fp8-mxfp8")),
    *({"precision": precision, "fp8_param": True} for precision in FP8),
    *({"precision": precision, **EDGES} for precision in ("fp8-tensorwise", "fp8-blockwise", "fp8-mxfp8")),
    *({"recompute": how, "precision": precision} for how in ("selective", "full") for precision in ("bf16", *FP8[:1])),
    {"gradient_accumulation_fusion": True},
    {"offload_modules": ["mlp_norm", "core_attn"]},
    {"offload_modules": ["attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm"]},
    {"cpu_offloading_num_layers": 1},
    {"optimizer": {"optimizer_cpu_offload": True}},
]
"""With one family, on one rank."""
OF_EXPERTS = [
    {},
    SP,
    SP | {"ep": 2},
    {"dp": 2, "ep": 2, "overlap_grad_reduce": True, "overlap_param_gather": True},
    {"pp": 2, "dp": 2, "ep": 2},
    SP | {"dp": 2, "ep": 2, "etp": 2},
]
"""With every mixture."""


def words(settings):
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "one rank"


def world_size(settings):
    return settings.get("tp", 1) * settings.get("pp", 1) * settings.get("cp", 1) * settings.get("dp", 1)


def make_folders(rank, master, parent):
    return {family: str(make_folder(family, "bfloat16", 0, parent / family)) for family in FAMILIES | OTHERS | MIXTURES}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Family -> HF folder, made in a rank, where transformers is imported already."""
    (made,) = run_ranks(1, make_folders, tmp_path_factory.mktemp("families"), stage=STAGE)
    return made


def check(folder, ranks):
    """One family's, of all ranks."""
    hf = read_hf_config(folder)
    expected = parameters(hf)
    assert {name for rank in ranks for name in rank.hf_names} == {n for p in expected for n in p.hf_shapes}
    assert set.union(*(rank.checkpoint_keys for rank in ranks)) == {p.key for p in expected}
    assert set.union(*(rank.weight_keys for rank in ranks)) == {p.key for p in expected}
    assert [rank.misplaced_marks for rank in ranks] == [[]] * len(ranks)


@pytest.mark.parametrize("settings", LAYOUTS, ids=words)
def test_every_family_in_a_layout(folders, settings):
    folders = {family: folder for family, folder in folders.items() if family not in MIXTURES}
    ranks = run_ranks(world_size(settings), build, folders, settings, stage=STAGE)
    for family, folder in folders.items():
        check(folder, [rank[family] for rank in ranks])
        for rank in ranks:
            built = rank[family]
            assert built.optimizer == ["ChainedOptimizer", "DistributedOptimizer", "FusedAdam", "transformer_engine"]
            assert built.parameter_classes == {"Tensor"} and built.extra_states


@pytest.mark.parametrize("settings", OF_EXPERTS, ids=words)
def test_every_mixture_in_a_layout(folders, settings):
    """Grouped experts, whose slots have names of their own, under the checkpoint's keys of a CPU's."""
    folders = {family: folders[family] for family in MIXTURES}
    ranks = run_ranks(world_size(settings), build, folders, settings, stage=STAGE)
    for family, folder in folders.items():
        check(folder, [rank[family] for rank in ranks])
        assert all(rank[family].experts == ["TEGroupedMLP"] for rank in ranks), family
        assert not [name for rank in ranks for name in rank[family].extra_states if ".experts." in name], family


@pytest.mark.parametrize("settings", SETTINGS, ids=words)
def test_every_setting(folders, settings):
    folder = folders["qwen2"]
    (rank,) = run_ranks(1, build, {"qwen2": folder}, settings, stage=STAGE)
    check(folder, [rank["qwen2"]])
    quantized = {"fp8-blockwise": "Float8BlockwiseQTensor"}.get(settings.get("precision"), "Float8Tensor")
    assert rank["qwen2"].parameter_classes == ({"Tensor", quantized} if "fp8_param" in settings else {"Tensor"})
    if "optimizer" in settings:
        assert rank["qwen2"].optimizer[2] == "HybridDeviceOptimizer"
