"""What a run's end saves, and says of going on; with stand-ins for its processes. Real ones: tests/e2e/test_ends.py."""

import signal
from contextlib import closing
from types import SimpleNamespace

import pytest

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.processes import ProcessLost
from megatron_nft.config import load_config
from megatron_nft.observe.owner import OwnerLost
from megatron_nft.rollout.api import EngineError
from megatron_nft.run.around import TryAgain
from megatron_nft.run.checkpoints import Progress
from megatron_nft.run.run import Run
from megatron_nft.run.stop import Stop, StopRequested
from megatron_nft.run.supervised import SupervisedRun
from megatron_nft.verdict.pool import JudgeError

CONFIG = load_config("launch/recipes/quickstart.toml")


def nothing(*_):
    return None


class Checkpoints:
    """Saves at once."""

    def __init__(self, newest):
        self.newest_step, self.saved = newest, []

    def begin(self, progress):
        self.saved.append(progress.step)
        self.newest_step = progress.step

    def finish(self, step=None):
        pass


def end(error, *, kind=Run, done=5, newest=3, first=0, whole=True, every=4, ping=nothing):
    """Of a run whose loop raises that after step `done`: what comes out, what was saved, what was said."""
    run, said = object.__new__(kind), []
    checkpoint = CONFIG.checkpoint.model_copy(update={"every": every})
    run.config = CONFIG.model_copy(update={"checkpoint": checkpoint})
    run.report = SimpleNamespace(announce=said.append)
    run.source = SimpleNamespace(state=lambda: ({}, ()), close=nothing)
    run.actors, run.engines = SimpleNamespace(ping=ping), SimpleNamespace(kill=nothing)
    run.checkpoints = Checkpoints(newest)
    run.progress = Progress(step=done, policy_version=done, sampling={}, minutes=0.0)
    run._is_whole, run._first_step = whole, first

    def steps(run, stop):
        raise error

    with closing(Stop()) as stop, pytest.raises(BaseException) as raised:
        run.survive(steps, stop)
    return raised.value, run.checkpoints.saved, " ".join(said)


@pytest.mark.parametrize(
    ("kind", "error"),
    [(Run, ClusterError("engines")), (Run, JudgeError("graders")), (SupervisedRun, ClusterError("ranks"))],
)
def test_an_error_that_a_new_job_mends_saves_and_asks_for_one(kind, error):
    raised, saved, _ = end(error, kind=kind)
    assert isinstance(raised, TryAgain) and raised.__cause__ is error and saved == [5]


@pytest.mark.parametrize("error", [EngineError("refused"), ZeroDivisionError()])
def test_any_other_saves_and_stays_what_it_is(error):
    assert end(error)[:2] == (error, [5])


def test_without_a_step_further_no_new_job_is_asked_for():
    error = ClusterError("at once again")
    assert end(error, done=3, newest=3, first=3)[:2] == (error, [])


@pytest.mark.parametrize("kind", [Run, SupervisedRun])
def test_a_step_in_the_middle_is_not_saved(kind):
    error = ClusterError("lost")
    raised, saved, said = end(error, kind=kind, whole=False)
    assert isinstance(raised, TryAgain), "step 3 was saved by this job"
    assert saved == [] and "step 5 is not saved (the next was being trained); the last checkpoint is of step 3" in said
    assert end(error, whole=False, newest=0)[0] is error


def test_ranks_that_do_not_answer_are_not_waited_for_again():
    asked = []

    def ping(patience_s):
        asked.append(patience_s)
        raise ProcessLost("ping: no answer from actor rank 0")

    raised, saved, said = end(EngineError("refused"), ping=ping)
    assert isinstance(raised, EngineError) and saved == [] and asked == [60.0]
    assert "saving step 5 failed: ping: no answer from actor rank 0" in said


def test_in_anothers_folder_nothing_is_saved():
    assert end(OwnerLost("taken over"))[1:] == ([], "")


@pytest.mark.parametrize(
    ("more", "goes_on"),
    [
        ({}, True),
        ({"every": 0, "newest": 0}, False),
        ({"every": 0, "newest": 0, "done": 0}, True),
        ({"whole": False, "newest": 0}, False),
        ({"whole": False, "newest": 3, "first": 3}, False),
        ({"whole": False, "newest": 3, "first": 1}, True),
    ],
)
def test_a_stop_goes_on_unless_a_new_job_would_do_the_same_again(more, goes_on):
    raised, saved, _ = end(StopRequested(signal.SIGUSR1), **more)
    assert isinstance(raised, StopRequested) and raised.goes_on is goes_on
    assert saved == ([5] if more == {} else [])
