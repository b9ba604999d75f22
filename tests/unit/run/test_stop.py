"""Signals that ask for a stop: at once where nothing gets lost, else at the next such place."""

import os
import signal

import pytest

from megatron_nft.run.stop import Stop, StopRequested


@pytest.fixture
def stop():
    stop = Stop()
    yield stop
    stop.close()


def test_inside_a_block_the_answer_is_at_once(stop):
    done = []
    with pytest.raises(StopRequested, match="SIGUSR1") as request, stop.interruptible():
        os.kill(os.getpid(), signal.SIGUSR1)
        done.append("never")
    assert request.value.number == signal.SIGUSR1 and not done


def test_outside_it_waits_for_the_next_block(stop):
    done = []
    os.kill(os.getpid(), signal.SIGTERM)
    done.append("the update")
    with pytest.raises(StopRequested, match="SIGTERM"), stop.interruptible():
        done.append("the next rollouts")
    assert done == ["the update"]
    with stop.interruptible():  # once
        done.append("saving")
    assert done == ["the update", "saving"]


def test_a_request_is_no_exception_that_a_handler_of_errors_takes(stop):
    with pytest.raises(StopRequested), stop.interruptible():
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        except Exception:
            pytest.fail("taken for an error")


def test_afterwards_signals_are_heeded_by_whom_they_were_before():
    before = signal.getsignal(signal.SIGTERM)
    stop = Stop()
    assert signal.getsignal(signal.SIGTERM) != before
    stop.close()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "made_of_it", [KeyboardInterrupt, SystemError("returned a result with an exception set"), None]
)
def test_what_code_in_c_makes_of_it_is_a_request_still(stop, made_of_it):
    """Ray's and Cython's functions, which the handler ran in; None: it is gone."""
    with pytest.raises((KeyboardInterrupt, SystemError)) as request, stop.interruptible():
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        except StopRequested:
            if made_of_it is not None:
                raise made_of_it from None
    assert isinstance(request.value, StopRequested) and request.value.number == signal.SIGUSR1
    with stop.interruptible():  # once
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemError("of another"), ValueError])
def test_other_errors_of_a_block_stay_what_they_are(stop, error):
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind) as raised, stop.interruptible():
        raise error
    assert type(raised.value) is kind
