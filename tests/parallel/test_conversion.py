"""Converted checkpoints on real ranks: training loads them in any layout, and its own come out as its export does."""

import json
from pathlib import Path

import pytest
import torch

from checkpoint_tools import hf_to_megatron, megatron_to_hf, verify
from checkpoint_tools.show import describe
from megatron_nft.weights.export import finish_hf_folder, hf_folder_in_progress
from megatron_nft.weights.hf_tensors import HFTensors
from tests.parallel.families import FAMILIES, OTHERS, make_folder
from tests.parallel.ranks import run_ranks
from tests.parallel.test_layouts import _moved, stored_sequences

pytestmark = pytest.mark.parallel

SHORT = ["data.max_prompt_tokens=150", "rollout.max_answer_tokens=100"]


@pytest.fixture(scope="module", params=[*FAMILIES, *OTHERS])
def folder(request, tmp_path_factory):
    """An HF folder in bf16 of each family; the vocabulary (1,027) is padded otherwise in every layout."""
    return make_folder(request.param, "bfloat16", 3, tmp_path_factory.mktemp(request.param.replace(" ", "_")) / "model")


@pytest.fixture(scope="module")
def megatron(folder):
    hf_to_megatron.convert(folder, folder.parent / "megatron")
    return folder.parent / "megatron"


def test_round_trip(folder, megatron, tmp_path):
    megatron_to_hf.convert(megatron, tmp_path / "back")
    check = verify.compare_folders(folder, tmp_path / "back")
    assert check.passed, check
    kept = {p.name for p in folder.iterdir() if not p.match("*.safetensors")}
    assert kept == {p.name for p in (tmp_path / "back").iterdir() if not p.match("*.safetensors")}


def weights_of_rank(rank, master, folder, megatron, overrides):
    """How many of this rank's parameters `load_weights` sets to the bits of `load_hf_weights`, and how many not."""
    torch.set_num_threads(1)
    from megatron_nft.actor.checkpoint import load_weights
    from megatron_nft.actor.hf_weights import load_hf_weights
    from megatron_nft.actor.model import build_chunks
    from megatron_nft.actor.topology import init_topology
    from megatron_nft.config import load_config
    from megatron_nft.families.hf_config import read_hf_config

    config = load_config("launch/recipes/quickstart.toml", [f"model.path={json.dumps(folder)}", *SHORT, *overrides])
    topology = init_topology(config.actor, rank=rank, master=master, device="cpu", seed=0)
    hf = read_hf_config(folder)
    chunks = [build_chunks(hf, config.actor, topology) for _ in range(2)]
    load_hf_weights(chunks[0], folder, hf, topology)
    for parameter in (p for chunk in chunks[1] for p in chunk.parameters()):
        parameter.data.fill_(torch.nan)
    load_weights(Path(megatron), chunks[1])
    expected, found = ([p for chunk in copy for p in chunk.parameters()] for copy in chunks)
    same = [torch.equal(one, other) for one, other in zip(found, expected, strict=True)]
    return sum(same), len(same) - sum(same)


@pytest.mark.parametrize("layout", [{"tp": 1}, {"tp": 2}, {"tp": 1, "pp": 2, "vpp": 2}], ids=str)
def test_training_loads_it(folder, megatron, layout):
    overrides = ['actor.precision="bf16"', *(f"actor.{axis}={size}" for axis, size in layout.items())]
    world_size = layout["tp"] * layout.get("pp", 1)
    for same, different in run_ranks(world_size, weights_of_rank, str(folder), str(megatron), overrides):
        assert same > 10 and different == 0


def trained(rank, master, model, folder, overrides):
    """One update, then the same weights by both ways out."""
    torch.set_num_threads(1)
    from megatron_nft.actor.topology import data_parallel_rank
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config
    from megatron_nft.data.packing import pack

    config = load_config("launch/recipes/quickstart.toml", overrides)
    worker = Worker(config, rank=rank, master=master)
    groups = [_moved(s) for s in stored_sequences()[0]]
    batch = pack([groups], num_updates=1, dp=config.actor.dp, tokens_per_microbatch=1000)
    worker.train_step([batch.updates[0][data_parallel_rank(config.actor, rank)]])
    worker.save(f"{folder}/checkpoint")
    names = worker.save_hf(f"{folder}/export")
    worker.shutdown()
    return names


QUICKSTART = Path("tests/assets/quickstart/model")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint of tp 2 x pp 2 x 2 virtual stages, and the HF folder that the same ranks wrote."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoint").mkdir()
    layout = ["actor.tp=2", "actor.pp=2", "actor.vpp=2", 'actor.precision="bf16"', "optimizer.learning_rate=1e-2"]
    with hf_folder_in_progress(folder / "hf") as partial:
        (folder / "export").symlink_to(partial)
        maps = run_ranks(4, trained, str(QUICKSTART), str(folder), layout)
        finish_hf_folder(partial, QUICKSTART, [m for m in maps if m is not None])
    return folder


def test_a_checkpoint_of_a_run_becomes_what_the_run_exports(run, tmp_path):
    megatron_to_hf.convert(run / "checkpoint", tmp_path / "hf", side_files=QUICKSTART)
    assert verify.compare_folders(run / "hf", tmp_path / "hf").passed
    assert {p.name for p in tmp_path.joinpath("hf").iterdir()} == {p.name for p in QUICKSTART.iterdir()}
    before, after = HFTensors(QUICKSTART), HFTensors(tmp_path / "hf")
    assert all(after[name].dtype == torch.bfloat16 for name in after.names)
    matrices = [name for name in before.names if "norm" not in name]  # a norm's step is below bf16's
    assert not any(torch.equal(before[name].bfloat16(), after[name]) for name in matrices), "an update moved them all"


def test_inspect_knows_the_layout(run):
    found = describe(run / "checkpoint")
    assert found["layout"] == {"tp": 2, "pp": 2, "vpp": 2, "cp": 1, "dp": 1} and found["updates"] == 1
    assert found["optimizer"]["numbers"] >= 3 * HFTensors(QUICKSTART)["model.embed_tokens.weight"].numel()


def verified(rank, master, arguments):
    from checkpoint_tools.verify import main

    return main(arguments)


def test_verify_with_logits(folder, megatron):
    assert run_ranks(1, verified, ["--hf", str(folder), "--megatron", str(megatron)]) == [0]


def test_verify_finds_another_model(run):
    assert run_ranks(1, verified, ["--hf", str(QUICKSTART), "--megatron", str(run / "checkpoint")]) == [1]
