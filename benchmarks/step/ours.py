"""A run of this program that takes its steps when it is told to: megatron_nft.train's own loop, between two waits."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.step.cases import RECIPE, Case, overrides
from megatron_nft.config import load_config
from megatron_nft.observe.metrics import rollout_metrics
from megatron_nft.run.run import Run, run_recipe
from megatron_nft.run.stop import Stop
from megatron_nft.train import train


def run(
    case: Case, folder: Path, layout: Sequence[str], begin: Callable[[], None], end: Callable[[dict[str, float]], None]
) -> None:
    """Step after step, each between begin() and end(its metrics), until begin() raises.

    Args:
        layout: overrides of the recipe.
    """

    def steps(run: Run, stop: Stop) -> None:
        report, timed = run.report, run.report.step

        @contextmanager
        def in_turn(step: int) -> Iterator[None]:
            begin()
            with timed(step):
                yield
                metrics = report._metrics | rollout_metrics(report._groups)
            end(metrics)

        report.step = in_turn
        train(run, stop)

    place = [f'run.dir="{folder}"', "run.name=ours", "run.overwrite=all"]
    config = load_config(RECIPE, [*place, *overrides(case, folder), *layout])
    with contextlib.redirect_stdout(io.StringIO()):
        run_recipe(config, steps)
