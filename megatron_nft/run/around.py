"""Around a run, whatever it learns from: its folder and owner, its report, signals, and the words of its end.

What the run does comes in as a function. Called by run.py and supervised.py.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing

from megatron_nft.cluster.placement import refuse_unfit_machine
from megatron_nft.config import Config
from megatron_nft.observe.owner import Owner
from megatron_nft.observe.report import Report
from megatron_nft.observe.trackers import check_trackers
from megatron_nft.run.checkpoints import checkpoints_to_resume
from megatron_nft.run.folder import ending_of, run_folder
from megatron_nft.run.stop import Stop


class TryAgain(RuntimeError):
    """An error has ended the run that a new job may mend, and more has been saved than when it began: it can't be the
    beginning of a row without end. Its cause is the error."""


def say(line: str) -> None:
    """To whoever started the run."""
    print(line, flush=True)


def run_in_folder(
    config: Config,
    live: Callable[[Report, ExitStack, Stop, Owner], None],
    *,
    starts_processes: bool,
    announce: Callable[[str], None] = say,
) -> None:
    """Leaves the run folder in any case, with how the run ended in its report.

    Args:
        live: the run, from its parts to its end. What it enters into the stack is ended before the report is closed.
        starts_processes: it does; else those that are up already are used.
    """
    checkpoints_to_resume(config)  # refuses what can't be gone on with, before anything starts
    check_trackers(config)
    if starts_processes:
        refuse_unfit_machine()
    with run_folder(config, announce) as owner:
        if (ending := ending_of(config)) is not None:
            return announce(ending)
        report, verdict, comes_again = Report(config), "done", False
        with closing(Stop()) as stop:  # until the report is closed: a signal that comes later cuts no end short
            try:
                with ExitStack() as stack:
                    live(report, stack, stop, owner)
            except BaseException as error:
                cause = error.__cause__ if isinstance(error, TryAgain) else error
                words = f"interrupted: {error}".removesuffix(": ")
                is_interrupted = isinstance(error, KeyboardInterrupt)
                verdict = words if is_interrupted else f"failed: {type(cause).__name__}: {cause}"
                comes_again = not is_interrupted and not isinstance(error, TryAgain)
                raise
            finally:
                report.close(verdict, comes_again=comes_again)
