"""Parameters that are held in FP8: loaded, exported and gathered as any other."""

import pytest
from safetensors.torch import load_file

from tests.parallel.families import make_folder
from tests.parallel.ranks import run_ranks

STAGE = "tests.contract.played"
ROUNDING = 0.07
"""Of E4M3, beside the largest weight of a tensor: half a step of 2^-3, and one bf16 rounding."""


def export(rank, master, parent, overrides):
    """A folder, loaded and exported again by a Worker whose parameters are FP8; both folders, and the classes."""
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config

    model = make_folder("qwen2", "bfloat16", 0, parent / f"model{rank}")
    recipe = [f"model.path={model}", "cluster.device=cuda", "actor.fp8_param=true", *overrides]
    worker = Worker(load_config("launch/recipes/quickstart.toml", recipe), rank=rank, master=master)
    classes = {type(p.data).__name__ for chunk in worker.model for p in chunk.parameters()}
    exported = parent / f"exported{rank}"
    exported.mkdir()
    files = worker.save_hf(str(exported))
    worker.shutdown()
    return model, files and {exported / name for name in files.values()}, classes


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("precision", ["fp8-delayed", "fp8-tensorwise", "fp8-blockwise"])
def test_fp8_parameters_go_into_a_model_and_out_of_it(precision, tp, tmp_path):
    layout = [f"actor.precision={precision}", f"actor.tp={tp}", f"actor.sequence_parallel={str(tp > 1).lower()}"]
    (model, files, classes), *_ = run_ranks(tp, export, tmp_path, layout, stage=STAGE)
    assert len(classes) == 2 and classes < {"Tensor", "Float8Tensor", "Float8BlockwiseQTensor"}
    expected = load_file(model / "model.safetensors")
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == expected.keys()
    differences = {
        name: ((found[name].float() - tensor.float()).abs().max() / tensor.float().abs().max()).item()
        for name, tensor in expected.items()
    }
    assert 0.005 < max(differences.values()) < ROUNDING, max(differences, key=differences.get)
