"""A folder for the logs of each start, whatever lies beside the others."""

import shutil

import pytest
from ray.exceptions import RayTaskError

from megatron_nft.cluster.processes import cause_of, new_attempt
from megatron_nft.config import RecipeError


def test_every_start_has_its_own_whatever_was_deleted(tmp_path):
    for _ in range(3):
        new_attempt(tmp_path)
    shutil.rmtree(tmp_path / "logs" / "attempt_1")
    assert new_attempt(tmp_path).name == "attempt_4"
    shutil.rmtree(tmp_path / "logs")
    assert new_attempt(tmp_path).name == "attempt_1"


def test_odd_ones_are_left_alone(tmp_path):
    (tmp_path / "logs" / "attempt_old").mkdir(parents=True)
    (tmp_path / "logs" / "attempt_2.tar").write_text("")
    (tmp_path / "logs" / "attempt_7").write_text("somebody's")
    assert new_attempt(tmp_path).name == "attempt_8"
    assert len(list((tmp_path / "logs").iterdir())) == 4


def test_a_file_in_the_place_of_the_logs_is_refused(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(RecipeError, match=r"can't write logs to .*logs: .*; move what is there away, or set run.name"):
        new_attempt(tmp_path)


def test_a_refusal_of_a_process_is_its_own_line_here():
    """Ray's error has the remote traceback in its message, and is an instance of the cause's class."""
    try:
        raise RecipeError("actor.precision = fp8 needs another device")
    except RecipeError as raised:
        error = RayTaskError("call", "Traceback (most recent call last): ...", raised).as_instanceof_cause()
    assert isinstance(error, RecipeError) and "pid=" in str(error)
    assert str(cause_of(error)) == "actor.precision = fp8 needs another device" and type(cause_of(error)) is RecipeError
    assert cause_of(other := ValueError("no task's")) is other
