"""Settings that must agree with each other, mostly of several sections."""

import pytest

from megatron_nft.config import RecipeError, load_config
from tests.unit.config.conftest import refusal


def test_world_size_that_does_not_fit(recipe):
    message = refusal(recipe, "actor.tp=2", "actor.pp=2", "cluster.actor_ranks=8")
    assert "tp 2 x pp 2 x dp 1 = 4 != world size 8; set actor.dp = 2" in message


def test_updates_must_divide_groups(recipe):
    assert "not a multiple" in refusal(recipe, "train.groups_per_step=10", "train.updates_per_step=4")


def test_greedy_answers_are_all_equal(recipe):
    assert load_config(recipe, ["evaluate.temperature=0", "evaluate.samples=1"]).evaluate.temperature == 0
    assert "temperature = 0 gives 4 equal answers" in refusal(recipe, "evaluate.temperature=0", "evaluate.samples=4")


@pytest.mark.parametrize(
    ("overrides", "carrier"),
    [
        (["cluster.device=cpu"], "shared_memory"),
        (["cluster.device=cuda"], "collective"),
        (["cluster.device=cuda", "cluster.placement=colocated"], "cuda_ipc"),
        (["cluster.device=cpu", "weights.carrier=collective"], "collective"),
    ],
)
def test_the_carrier_follows_device_and_placement(overrides, carrier):
    assert load_config("launch/recipes/quickstart.toml", overrides).carrier == carrier


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["cluster.placement=colocated", "rollout.engines=3"],
            r"3 workers don't fit on the actor's 2 ranks; set rollout\.engines = 2, or actor\.dp = 2, or placement",
        ),
        (
            ["cluster.placement=colocated", "rollout.engines=1", "rollout.tp=4"],
            r"4 workers don't fit on the actor's 2 ranks; set actor\.dp = 2, or placement",
        ),
        (["weights.carrier=cuda_ipc"], r"needs GPUs that actor and engines share"),
        (["cluster.device=cuda", "weights.checksums=true"], r'for the "shared_memory" carrier, not "collective"'),
        (["cluster.device=cuda", "cluster.placement=colocated", "weights.carrier=collective"], "NCCL refuses"),
    ],
)
def test_placements_and_carriers_that_do_not_go_together_are_refused(overrides, says):
    with pytest.raises(RecipeError, match=says):
        load_config("launch/recipes/quickstart.toml", overrides)


def test_a_run_does_not_begin_from_its_own_checkpoint(tmp_path):
    run = [f'run.dir="{tmp_path}"', "run.name=one"]
    own, others = (f'checkpoint.resume="{tmp_path}/{name}/checkpoints/step_2"' for name in ("one", "two"))
    with pytest.raises(RecipeError, match=r"of this run, of which later steps are there, too; set run\.name"):
        load_config("launch/recipes/quickstart.toml", [*run, own])
    assert load_config("launch/recipes/quickstart.toml", [*run, others]).checkpoint.resume.endswith("step_2")
