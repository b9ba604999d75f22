"""How a driver's end becomes an exit status and one line; that batch scripts act on it: tests/slurm, tests/e2e."""

import errno
import signal

import pytest

from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.config import RecipeError
from megatron_nft.data.prompts import DataError
from megatron_nft.groups.queue import NoMixedGroups
from megatron_nft.observe.owner import FolderInUse, OwnerLost
from megatron_nft.run import command_line
from megatron_nft.run.around import TryAgain
from megatron_nft.run.stop import StopRequested

RECIPE = "launch/recipes/quickstart.toml"


def status_of(monkeypatch, end, *arguments, replayed=True):
    """Of a run that ends so."""

    def run_recipe(config, steps, *, max_staleness):
        if end is not None:
            raise end

    monkeypatch.setattr(command_line, "run_recipe", run_recipe)
    monkeypatch.setattr(command_line, "replay_step", lambda config, step: replayed)
    return command_line.main(lambda run, stop: None, "train", "Trains.", [RECIPE, *arguments])


def lost_anyway():
    """A stop, of which a new job would not get further."""
    end = StopRequested(signal.SIGUSR1)
    end.goes_on = False
    return end


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        (None, 0, ""),
        (StopRequested(signal.SIGUSR1), 75, "interrupted by SIGUSR1; the same command goes on from the last"),
        (StopRequested(signal.SIGTERM), 130, "interrupted by SIGTERM"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (lost_anyway(), 130, "interrupted by SIGUSR1; the same command would train again what wasn't saved"),
        (TryAgain("lost"), 75, "error: lost; the same command goes on from the last checkpoint"),
        (ClusterError("lost"), 1, "error: lost"),
        (OwnerLost("x has been taken over"), 1, "error: x has been taken over"),
        (FolderInUse("x is in use"), 2, "error: x is in use"),
        (OSError(errno.ENOSPC, "No space left"), 1, "error: [Errno 28] No space left; make room, and give the same"),
        (NoMixedGroups("none"), 1, "error: none"),
        (RecipeError("wrong"), 2, "error: wrong"),
        (DataError("empty"), 2, "error: empty"),
    ],
    ids=repr,
)
def test_every_end_has_its_status_and_its_line(monkeypatch, capsys, end, status, words):
    assert status_of(monkeypatch, end) == status
    error = capsys.readouterr().err
    assert error.startswith(words) and error.count("\n") == bool(words)


def test_a_stop_after_alarms_that_sampling_ahead_never_has(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "run_recipe", lambda config, steps, *, max_staleness: None)
    statuses = [
        command_line.main(
            lambda run, stop: None, "train", "Trains.", [RECIPE, "observe.gap_stop_after=2", *more], is_ahead=ahead
        )
        for ahead, more in (
            (False, []),
            (True, []),
            (True, ["observe.gap_bound=0.1"]),
            (True, ["rollout.max_staleness=0"]),
        )
    ]
    assert statuses == [0, 2, 0, 0]
    assert (
        "counts alarms, and with sampling ahead (rollout.max_staleness = 2) there is no alarm"
        in capsys.readouterr().err
    )


def test_a_mistake_of_the_programs_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        status_of(monkeypatch, ZeroDivisionError())
    with pytest.raises(FileNotFoundError):
        status_of(monkeypatch, FileNotFoundError(errno.ENOENT, "No such file"))


def test_a_replay_that_differs_has_failed(monkeypatch):
    assert status_of(monkeypatch, None, "--replay=3") == 0
    assert status_of(monkeypatch, None, "--replay=3", replayed=False) == 1
