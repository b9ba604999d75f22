"""What tests of different folders share: which of them wait for --all, the counts that tests/run.sh adds up, and a run
that no one interrupts."""

from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

TAKES_MINUTES = pytest.mark.night("minutes more of what others in its file cover in part")
"""Until each test of tests/e2e gives a reason of its own."""
RUN = ["run.overwrite=false", "checkpoint.every=3", "train.evaluate_every=3", "train.groups_per_step=4",
       "evaluate.max_prompts=12", "observe.save_batches=true", "rollout.kv_cache_gib=0.25"]  # fmt: skip
COUNTED = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "error")
"""As in pytest's own closing line."""
WAITING = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked `night`, too")
    parser.addoption("--tally", metavar="FILE", help="append this run's counts to a file, a line each")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests marked `night` out, unless --all is given."""
    waiting = [item for item in items if (marker := item.get_closest_marker("night")) and _says_why(item, marker)]
    if config.getoption("--all"):
        return
    items[:] = [item for item in items if item not in set(waiting)]
    names = [item.nodeid for item in waiting]
    if hasattr(config, "workeroutput"):  # pytest-xdist: this is one of its processes, which tells no one
        config.workeroutput["waiting"] = names
    else:
        _leave_out(config, names)


def _says_why(item: pytest.Item, marker: pytest.Mark) -> bool:
    if len(marker.args) != 1:
        raise pytest.UsageError(f'{item.nodeid}: @pytest.mark.night("what it covers that others don\'t")')
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """pytest-xdist: each of its processes has collected the same tests."""
    if WAITING not in node.config.stash:
        _leave_out(node.config, getattr(node, "workeroutput", {}).get("waiting", []))


def _leave_out(config: pytest.Config, names: list[str]) -> None:
    config.stash[WAITING] = names
    config.hook.pytest_deselected(items=[SimpleNamespace(nodeid=name) for name in names])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What waits for --all, by file; and the counts for tests/run.sh."""
    if waiting := Counter(name.partition("::")[0] for name in config.stash.get(WAITING, [])):
        files = ", ".join(f"{file} {count}" for file, count in waiting.items())
        terminalreporter.write_line(f"{waiting.total()} tests wait for ./tests/run.sh --all: {files}")
    if (tally := config.getoption("--tally")) and not hasattr(config, "workerinput"):
        with open(tally, "a") as file:
            file.writelines(f"{name} {len(terminalreporter.stats.get(name, []))}\n" for name in COUNTED)


TRACKED = ['observe.trackers=["tensorboard", "wandb"]', "observe.wandb_mode=offline"] if find_spec("wandb") else []


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """The folder of a quickstart with RUN and six steps, without an interruption. Beside it is `out`, what it said."""
    from tests.e2e.driver import assert_no_survivors, start

    folder = tmp_path_factory.mktemp("straight")
    process, mark = start(folder, *RUN, *TRACKED, "train.steps=6")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_no_survivors(mark)
    (folder / "out").write_text(out)
    return folder / "quickstart"
