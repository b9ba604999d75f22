"""A checkpoint counts as soon as its bytes are on the disk, whatever the run is at then and whatever ends it."""

import json
import signal
from contextlib import contextmanager
from unittest import mock

import pytest

from megatron_nft.actor.checkpoint_parts import missing_parts
from megatron_nft.groups.source import GroupSource
from megatron_nft.run.held_out import HeldOutEvaluation
from megatron_nft.run.publication import Publication
from tests.conftest import RUN
from tests.e2e.driver import order, steps, wait_until

pytestmark = pytest.mark.e2e
FOUR = [*RUN, "train.steps=4", "checkpoint.every=1", "train.evaluate_every=1"]
INSIDE = {"rollout": (GroupSource, "take"), "evaluation": (HeldOutEvaluation, "evaluate")}


@contextmanager
def ended_by(number, place, step, condition):
    """A signal to the driver inside the rollout or the evaluation of a step, as soon as the condition holds there."""
    owner, name = INSIDE[place]
    original = getattr(owner, name)

    def wait(self, at, *more):
        if at == step:
            wait_until(condition)
            signal.raise_signal(number)
        return original(self, at, *more)

    with mock.patch.object(owner, name, wait):
        yield


def test_a_run_ended_right_after_goes_on_from_there(shared, tmp_path):
    run = tmp_path / "quickstart"
    checkpoints = run / "checkpoints"

    def names():
        return sorted(path.name for path in checkpoints.iterdir())

    with ended_by(signal.SIGINT, "rollout", 2, (checkpoints / "step_1").exists):
        ended = shared.train(tmp_path, *FOUR)
    assert ended.status == 130 and names() == ["latest", "step_1"], ended.err

    with ended_by(signal.SIGTERM, "evaluation", 2, (checkpoints / "step_2").exists):
        ended = shared.train(tmp_path, *FOUR)
    assert ended.status == 130 and f"resumed from {checkpoints}/step_1: step 1" in ended.out, ended.err
    assert "saving step" not in ended.out and names() == ["latest", "step_1", "step_2"], "it was saved already"

    partial = checkpoints / "step_3.partial"
    with (
        mock.patch.object(Publication, "_look", lambda self: False),  # as if nobody were left to publish it
        ended_by(signal.SIGINT, "evaluation", 3, lambda: partial.exists() and not missing_parts(partial)),
    ):
        ended = shared.train(tmp_path, *FOUR)
    assert ended.status == 130 and names() == ["latest", "step_1", "step_2", "step_3.partial"], ended.err
    lost = _without_last_step(run / "metrics.jsonl")  # as if killed before it was written

    ended = shared.train(tmp_path, *FOUR)
    assert ended.status == 0, ended.err
    assert f"{checkpoints}/step_3: was whole when the run was killed, and is published now" in ended.out
    assert f"resumed from {checkpoints}/step_3: step 3" in ended.out and "step 3/4" not in ended.out
    assert [step for kind, step in order(run) if kind == "step"] == [1, 2, 3, 4]
    record = steps(run)[2]
    assert lost["nft/loss"] == record["nft/loss"] and lost["train/updates"] == record["train/updates"]
    assert lost["groups_by_correct_rate"] == record["groups_by_correct_rate"]


def _without_last_step(path):
    lines = path.read_text().splitlines(keepends=True)
    place = max(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "step")
    lost = json.loads(lines.pop(place))
    assert lost["step"] == 3
    path.write_text("".join(lines))
    return lost
