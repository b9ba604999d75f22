"""Checkpoints of mixtures: the same run to the last bit in the same layout, to rounding in any other of the experts.

With ep > 1 there are two optimizers, the experts' beside the rest's, else one; a checkpoint has the tensors of both.
Two updates, a save, the third; then ranks of every layout take the third from their own save and from others'. And the
way through checkpoint_tools: HF -> Megatron -> HF, and what a run saved against what it exported.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoint_tools import hf_to_megatron, megatron_to_hf, verify
from checkpoint_tools.show import as_text, describe
from megatron_nft.weights.export import finish_hf_folder, hf_folder_in_progress
from tests.parallel.families import make_folder
from tests.parallel.mixtures import MixtureLayout, make_mixture, pieces_of
from tests.parallel.oracle import OVERRIDES, make_updates
from tests.parallel.ranks import run_ranks
from tests.parallel.test_conversion import weights_of_rank

pytestmark = pytest.mark.parallel
# fmt: off
LAYOUTS = {
    #                                tp pp vpp cp dp ep etp
    "one rank":         MixtureLayout(1, 1, 1, 1, 1, 1, 1, "none", "small", ""),
    "dp2 ep2":          MixtureLayout(1, 1, 1, 1, 2, 2, 1, "none", "small", ""),
    "tp2 dp2 ep2 etp2": MixtureLayout(2, 1, 1, 1, 2, 2, 2, "none", "small", ""),
    "pp2 dp2 ep2":      MixtureLayout(1, 2, 1, 1, 2, 2, 1, "none", "small", ""),
    "tp2 ep2":          MixtureLayout(2, 1, 1, 1, 1, 2, 1, "none", "small", ""),
    "tp2 etp2":         MixtureLayout(2, 1, 1, 1, 1, 1, 2, "none", "small", ""),
    "dp4 ep2":          MixtureLayout(1, 1, 1, 1, 4, 2, 1, "none", "small", ""),
    "tp2 dp2 ep4":      MixtureLayout(2, 1, 1, 1, 2, 4, 1, "none", "small", ""),
    "pp2 tp2 ep2":      MixtureLayout(2, 2, 1, 1, 1, 2, 1, "none", "small", ""),
}
# fmt: on
ON_A_PUSH = {
    "one rank": "pp2 dp2 ep2",
    "dp2 ep2": "one rank",
    "tp2 dp2 ep2 etp2": "dp2 ep2",
    "pp2 dp2 ep2": "tp2 dp2 ep2 etp2",
}  # fmt: skip
"""Layout -> whose save it takes beside its own: one optimizer to two and back, and every axis changes."""


def build(rank, master, folder, layout, updates):
    torch.set_num_threads(1)
    from megatron_nft.actor.topology import data_parallel_rank
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config
    from megatron_nft.data.packing import pack

    lengths = ["data.max_prompt_tokens=40", "rollout.max_answer_tokens=80"]
    overrides = [f"model.path='{folder}/model'", *lengths, *OVERRIDES, *layout.overrides]
    config = load_config("launch/recipes/quickstart.toml", overrides)
    worker, budget = Worker(config, rank=rank, master=master), config.actor.tokens_per_microbatch
    batches = [pack(u, num_updates=1, dp=config.actor.dp, tokens_per_microbatch=budget).updates[0] for u in updates]
    return worker, [batch[data_parallel_rank(config.actor, rank)] for batch in batches]


def straight(rank, master, folder, name, updates):
    """Two updates, a save, what they export, the third: (files, metrics, weights)"""
    worker, updates = build(rank, master, folder, LAYOUTS[name], updates)
    worker.train_step(updates[:2])
    worker.save(f"{folder}/{name}")
    files = worker.save_hf(f"{folder}/{name} hf") if Path(f"{folder}/{name} hf").exists() else None
    metrics = worker.train_step(updates[2:])
    weights = pieces_of(worker, lambda parameter: parameter)
    worker.shutdown()
    return files, metrics, weights


def resumed(rank, master, folder, name, others, updates):
    """Of each save: metrics of the third update, and weights after it."""
    worker, updates = build(rank, master, folder, LAYOUTS[name], updates)
    found = {}
    for other in others:
        worker.load(f"{folder}/{other}")
        metrics = worker.train_step(updates[2:])
        found[other] = metrics, pieces_of(worker, lambda parameter: parameter)
    worker.shutdown()
    return found


class Saves:
    """The saves of some layouts of one model, and what came of the straight runs."""

    def __init__(self, folder, model, names):
        self.folder = folder
        make_mixture(model, folder / "model")
        self.updates = make_updates(folder / "model")
        self.outcomes = {name: self._run(name) for name in names}

    def _run(self, name):
        (self.folder / name).mkdir()
        with hf_folder_in_progress(self.folder / "export" / name) as partial:
            (self.folder / f"{name} hf").symlink_to(partial)
            ranks = run_ranks(LAYOUTS[name].num_processes, straight, str(self.folder), name, self.updates)
            finish_hf_folder(partial, self.folder / "model", [files for files, _, _ in ranks if files is not None])
        return [(metrics, weights) for _, metrics, weights in ranks]

    def check(self, name, others):
        """Goes on from its own save and from these."""
        names, straight_on = [name, *others], self.outcomes[name]
        ranks = run_ranks(LAYOUTS[name].num_processes, resumed, str(self.folder), name, names, self.updates)
        for rank, (metrics, weights) in zip(ranks, straight_on, strict=True):
            again, same = rank[name]
            assert again == metrics
            assert all(np.array_equal(same[n], weights[n], equal_nan=True) for n in weights)
            for other in others:
                found = rank[other][1]
                assert found.keys() == weights.keys()
                worst = max((float(np.nanmax(np.abs(found[n] - weights[n]))), n) for n in weights)
                assert worst[0] < 1e-6, (other, worst)


@pytest.fixture(scope="module")
def saves(tmp_path_factory):
    return Saves(tmp_path_factory.mktemp("saves"), "qwen2_moe", ON_A_PUSH)


@pytest.mark.parametrize(("name", "other"), ON_A_PUSH.items())
def test_from_its_own_save_and_another_layouts_to(saves, name, other):
    saves.check(name, [other])


def test_a_checkpoint_becomes_what_the_run_exports(saves, tmp_path):
    for name in ("tp2 dp2 ep2 etp2", "pp2 dp2 ep2"):
        megatron_to_hf.convert(saves.folder / name, tmp_path / name, side_files=saves.folder / "model")
        check = verify.compare_folders(saves.folder / "export" / name, tmp_path / name)
        assert check.passed, check
        assert not verify.compare_folders(saves.folder / "model", tmp_path / name).passed, "it has been trained"


def test_what_inspect_says(saves):
    said = as_text(describe(saves.folder / "tp2 dp2 ep2 etp2"), with_tensors=False)
    assert "tp 2 x pp 1 x cp 1 x dp 2 x ep 2 x etp 2" in said


@pytest.mark.night("all pairs of layouts, and of a model of which some layers are dense")
@pytest.mark.parametrize("model", ["qwen3_moe", "qwen3_moe mixed"])
def test_from_every_layout_to_every_layout(model, tmp_path_factory):
    saves = Saves(tmp_path_factory.mktemp("saves"), model, LAYOUTS)
    said = {name: as_text(describe(saves.folder / name), with_tensors=False) for name in LAYOUTS}
    assert "tp 2 x pp 1 x cp 1 x dp 2 x ep 2 x etp 2" in said["tp2 dp2 ep2 etp2"]
    for name in LAYOUTS:
        saves.check(name, [other for other in LAYOUTS if other != name])


@pytest.mark.parametrize("family", ["qwen3_moe mixed", "qwen2_moe", "mixtral"])
def test_hf_to_megatron_to_hf_and_into_ranks(family, tmp_path):
    folder, megatron = make_folder(family, "bfloat16", 3, tmp_path / "model"), tmp_path / "megatron"
    hf_to_megatron.convert(folder, megatron)
    megatron_to_hf.convert(megatron, tmp_path / "back")
    check = verify.compare_folders(folder, tmp_path / "back")
    assert check.passed, check
    assert "tp 1 x pp 1; any" in as_text(describe(megatron), with_tensors=False)
    layout = {"qwen2_moe": ["actor.tp=2", "actor.sequence_parallel=true", "actor.ep=2"]}.get(
        family, ["actor.tp=1", "actor.dp=2", "actor.ep=2"]
    )
    overrides = ['actor.precision="bf16"', *layout]
    for same, different in run_ranks(2, weights_of_rank, str(folder), str(megatron), overrides):
        assert same > 10 and different == 0
