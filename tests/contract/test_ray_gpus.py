"""Ray hands out GPUs: who sees which, in colocated and split placements, and again after a process was replaced.

A real Ray that is told of four GPUs; they are names, and no process opens one.
"""

import os

import pytest
import ray

from megatron_nft.cluster import placement
from megatron_nft.cluster.connections import VARIABLE
from megatron_nft.cluster.ranks import Actors
from megatron_nft.config import load_config
from megatron_nft.rollout.vllm.environment import engine_environment

CUDA = ["cluster.device=cuda", "actor.precision=bf16", "rollout.dtype=bfloat16"]


@pytest.fixture
def four_gpus(monkeypatch, tmp_path):
    start = ray.init
    monkeypatch.setattr(placement.ray, "init", lambda **options: start(**options | {"num_gpus": 4, "num_cpus": 4}))
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.delenv(VARIABLE, raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@ray.remote
class Process:
    """Where a rank or an engine would be."""

    def sees(self):
        return os.environ.get("CUDA_VISIBLE_DEVICES")


def engine(config, place, index):
    """As cluster/fleet.py starts it."""
    environment = engine_environment("cuda", 1, config.rollout.tp, index) | place.engine_environment(index)
    options = place.engine_options(index)
    return Process.options(**options, runtime_env={"env_vars": environment}).remote()


def sees(process):
    return ray.get(process.sees.remote(), timeout=60)


@pytest.mark.parametrize(
    ("layout", "ranks", "engines"),
    [
        (["cluster.placement=colocated", "actor.tp=2", "actor.dp=2", "rollout.engines=4"], "0 1 2 3", "0 1 2 3"),
        (["cluster.placement=colocated", "actor.tp=2", "actor.dp=2", "rollout.engines=2", "rollout.tp=2"],
         "0 1 2 3", "0,1 2,3"),
        (["actor.tp=2", "rollout.engines=1", "rollout.tp=2"], "0 1", "2,3"),
    ],
    ids=["colocated", "colocated, engines of two", "split"],
)  # fmt: skip
def test_who_sees_which_gpus(layout, ranks, engines, four_gpus):
    config = load_config("launch/recipes/quickstart.toml", [*CUDA, *layout])
    with placement.ray_cluster(config) as place:
        actors = [Process.options(**place.actor_options(rank)).remote() for rank in range(config.actor.world_size)]
        assert [sees(actor) for actor in actors] == ranks.split()
        beside = [engine(config, place, index) for index in range(config.rollout.engines)]
        assert [sees(each) for each in beside] == engines.split()
        ray.kill(beside[0])
        assert sees(engine(config, place, 0)) == engines.split()[0], "the one in its place"


@pytest.mark.parametrize(("capability", "expected"), [("9.0", "1"), ("10.0", None)], ids=["H100", "B200"])
def test_ranks_start_with_one_connection_before_blackwell(capability, expected, four_gpus, tmp_path):
    """It is in their environment from the start: what they import may touch CUDA."""
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho {capability}\n")
    config = load_config("launch/recipes/quickstart.toml", [*CUDA, "actor.tp=2"])
    with placement.ray_cluster(config) as place:
        ranks = Actors(config, place)._ranks
        for number, rank in enumerate(ranks.values()):
            seen = ray.get(rank.__ray_call__.remote(lambda self: dict(os.environ)), timeout=120)
            assert seen.get(VARIABLE) == expected and seen["CUDA_VISIBLE_DEVICES"] == str(number)
