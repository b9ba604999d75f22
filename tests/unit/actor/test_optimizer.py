"""The learning rate of every update: Megatron's schedule, and the stairs of the authors' one."""

import pytest
import torch

from megatron_nft.actor.optimizer import build_schedule, optimizer_config
from megatron_nft.config import ActorConfig, OptimizerConfig

UPDATES_PER_STEP, UPDATES = 16, 400


def rates(optimizer):
    """Of 400 updates, with the schedule at work on torch's AdamW, whose groups have what Megatron gives its own."""
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=optimizer.learning_rate)
    megatron = optimizer_config(optimizer, ActorConfig())
    adam.param_groups[0] |= {"max_lr": megatron.lr, "min_lr": megatron.min_lr}
    schedule, found = build_schedule(adam, optimizer, UPDATES_PER_STEP, UPDATES), []
    for _ in range(UPDATES):
        schedule.begin_update()  # as actor/worker.py does
        found.append(adam.param_groups[0]["lr"])
    return found


def authors_rates():
    """Their scheduler by hand: verl's constant schedule with 10 steps of warm-up, which steps once the 16 updates of a
    rollout step are done."""
    found, steps_done = [], 0
    for update in range(1, UPDATES + 1):
        found.append(1e-6 * min(1.0, steps_done / 10))
        if update % 16 == 0:
            steps_done += 1
    return found


def test_the_authors_schedule():
    found = rates(OptimizerConfig(learning_rate=1e-6, warmup_rollout_steps=10))
    assert found == pytest.approx(authors_rates(), abs=1e-18)
    assert found[:16] == [0.0] * 16
    at = {update: found[update - 1] for update in (11, 17, 81, 160, 161, 400)}
    assert at == pytest.approx({11: 0.0, 17: 1e-7, 81: 5e-7, 160: 9e-7, 161: 1e-6, 400: 1e-6})
    assert sum(found[:160]) == pytest.approx(72e-6)  # full-rate updates


def test_warm_up_counted_in_updates():
    found = rates(OptimizerConfig(learning_rate=1e-6, warmup_updates=10))
    assert found == pytest.approx([1e-6 * min(update / 10, 1) for update in range(1, UPDATES + 1)])
    assert sum(found[:160]) == pytest.approx(155.5e-6)


def test_the_rate_falls_over_the_last_updates():
    found = rates(OptimizerConfig(learning_rate=1e-6, warmup_updates=10, decay_updates=160))
    expected = [1e-6 * min(u / 10, 1, (UPDATES + 1 - u) / 160) for u in range(1, UPDATES + 1)]
    assert found == pytest.approx(expected, abs=1e-18) and found[-1] > 0
    with pytest.raises(ValueError, match="decay_updates = 160 goes with a warm-up in updates"):
        OptimizerConfig(decay_updates=160, warmup_rollout_steps=10)


def test_either_goes_on_from_the_others_checkpoint():
    """Both count updates, so that a resumed run may change its unit."""
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-6)
    by_updates = build_schedule(adam, OptimizerConfig(warmup_updates=10), UPDATES_PER_STEP)
    by_updates.step(80)
    in_stairs = build_schedule(adam, OptimizerConfig(warmup_rollout_steps=10), UPDATES_PER_STEP)
    in_stairs.load_state_dict(by_updates.state_dict())
    assert in_stairs.begin_update() == 6
    assert adam.param_groups[0]["lr"] == pytest.approx(5e-7)


@pytest.mark.parametrize("updates_per_step", [4, 16, 64])
def test_a_resumed_run_may_change_its_updates_per_step(updates_per_step):
    """Then the step can't be counted from updates: it is said."""
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-6)
    before = build_schedule(adam, OptimizerConfig(warmup_rollout_steps=10), UPDATES_PER_STEP)
    before.step(5 * UPDATES_PER_STEP)
    resumed = build_schedule(adam, OptimizerConfig(warmup_rollout_steps=10), updates_per_step)
    resumed.load_state_dict(before.state_dict())
    assert resumed.begin_update(6) == 6
    assert adam.param_groups[0]["lr"] == pytest.approx(5e-7)


def test_one_warm_up_in_one_unit():
    assert OptimizerConfig(warmup_rollout_steps=10).warmup_updates == 0
    with pytest.raises(ValueError, match="are one warm-up in two units; set one of them to 0"):
        OptimizerConfig(warmup_rollout_steps=10, warmup_updates=160)
