"""A folder for the logs of each start, whatever lies beside the others; answers and errors of a verb."""

import shutil
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError, RayTaskError

from megatron_nft.cluster import processes
from megatron_nft.cluster.processes import Pending, ProcessLost, cause_of, new_attempt
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


class Ref:
    """Ray's, of an answer or of an error."""

    def __init__(self, outcome):
        self.outcome = outcome


def wait_for(monkeypatch, *outcomes, dead=()):
    """A verb on as many processes, which all answer at once."""

    def get(refs):
        for ref in refs if isinstance(refs, list) else [refs]:
            if isinstance(ref.outcome, Exception):
                raise ref.outcome
        return [ref.outcome for ref in refs] if isinstance(refs, list) else refs.outcome

    monkeypatch.setattr(processes, "ray", SimpleNamespace(get=get, wait=lambda refs, **_: (refs, [])))
    monkeypatch.setattr(processes, "dead_of", lambda processes: list(dead))
    return Pending("score", {f"actor rank {n}": Ref(each) for n, each in enumerate(outcomes)}, 60.0, {}).wait()


def test_an_error_among_many_answers_is_its_own(monkeypatch):
    assert wait_for(monkeypatch, "a", None, "c") == ["a", None, "c"]
    with pytest.raises(ValueError, match="no such microbatch"):
        wait_for(monkeypatch, "a", ValueError("no such microbatch"), "c")
    with pytest.raises(ProcessLost, match="score: actor rank 2 died"):
        wait_for(monkeypatch, "a", "b", RayActorError())
    with pytest.raises(ProcessLost, match="score: actor rank 7 died: connection closed"):
        wait_for(monkeypatch, ValueError("connection closed"), "b", dead=["actor rank 7"])
