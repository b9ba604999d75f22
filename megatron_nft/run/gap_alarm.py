"""The alarm for the gap between engine and actor: it warns, with the likely cause and the batch kept, and may stop.

A step's scored batch comes in, its gap's metrics go to the report. Called by train.py in every step. What is normal is
in observe/README.md.
"""

from megatron_nft.config import Config
from megatron_nft.observe.batches import save_batch
from megatron_nft.observe.gap import diagnose, logprob_gap
from megatron_nft.observe.report import Report
from megatron_nft.types import TrainBatch


class GapTooLarge(RuntimeError):
    """The engine's log-probs have been too far from the actor's for too many steps in a row."""


class GapAlarm:
    """Of one run, from a start to its end.

    Args:
        is_ahead: answers are older than the policy that trains, and the gap is so by design: only a bound that the
            recipe gives is watched.
    """

    def __init__(self, config: Config, report: Report, *, is_ahead: bool) -> None:
        self._config, self._report = config, report
        self._bound = config.gap_bound(is_ahead=is_ahead)
        self._in_a_row = 0
        self._last = ""

    def look(self, step: int, batch: TrainBatch) -> None:
        """Adds the metrics of the gap, and warns if it is beyond the bound."""
        metrics = logprob_gap(batch, self._config.algorithm.importance_cap)
        is_beyond = bool(self._bound) and not metrics["rollout/gap_kl"] <= self._bound  # not a number: beyond
        self._report.add(metrics | {"rollout/gap_alarms": float(is_beyond)})
        self._in_a_row = self._in_a_row + 1 if is_beyond else 0
        if not is_beyond:
            return
        path = self._config.run_dir / "gap" / f"step_{step}.npz"
        save_batch(batch, path)
        found = diagnose(batch.sequences)
        self._last = (
            f"step {step}: gap alarm ({found.cause}): KL(engine || actor) is about {metrics['rollout/gap_kl']:.2g} "
            f"nats a token, observe.gap_bound is {self._bound:g}; {found.words}. The batch is {path}"
        )
        self._report.announce(self._last)

    def stop_if_told(self) -> None:
        """After the step, so that it can be saved.

        Raises:
            GapTooLarge: as many steps in a row as observe.gap_stop_after says were beyond the bound.
        """
        limit = self._config.observe.gap_stop_after
        if limit and self._in_a_row >= limit:
            raise GapTooLarge(
                f"{self._last}. That was step {self._in_a_row} in a row, and observe.gap_stop_after = {limit}; mend "
                "the engine, or raise observe.gap_bound if such a gap is what you want"
            )
