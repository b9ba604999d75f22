"""The alarm for the gap between engine and actor: it warns, with the likely cause and the batch kept, and may stop.

A step's scored batch comes in, its gap's metrics go to the report. Called by train.py in every step. What is normal is
in observe/README.md.
"""

from megatron_nft.config import Config
from megatron_nft.observe.batches import save_batch
from megatron_nft.observe.gap import diagnose, logprob_gap, temperature_of
from megatron_nft.observe.report import Report
from megatron_nft.types import TrainBatch


class GapTooLarge(RuntimeError):
    """The engine's log-probs have been too far from the actor's for too many steps in a row."""


class GapAlarm:
    """Of one run, from a start to its end.

    Args:
        is_ahead: answers are older than the policy that trains, and the gap is so by design: only a bound that the
            recipe gives is watched.
        has_experts: the model has; see `Config.gap_bound`.
    """

    def __init__(self, config: Config, report: Report, *, is_ahead: bool, has_experts: bool = False) -> None:
        self._config, self._report = config, report
        self._bound = config.gap_bound(is_ahead=is_ahead, has_experts=has_experts)
        self._knows_all = not config.trains_on_older(is_ahead=is_ahead)
        self._in_a_row = 0
        self._last = ""

    def look(self, step: int, batch: TrainBatch | None) -> None:
        """Adds the metrics of the gap, and warns if it is beyond the bound, or a temperature's at any size.

        Args:
            batch: scored by the actor, of before the step. None: it has not been.
        """
        if batch is None:
            return
        metrics = logprob_gap(batch, self._config.algorithm.importance_cap)
        kl, found = metrics["rollout/gap_kl"], None
        if self._bound and not kl <= self._bound:  # not a number: beyond
            found = diagnose(batch.sequences)
        elif self._bound and self._knows_all:  # rounding does not do this
            found = temperature_of(batch.sequences)
        self._report.add(metrics | {"rollout/gap_alarms": float(found is not None)})
        self._in_a_row = self._in_a_row + 1 if found else 0
        if found is None:
            return
        path = self._config.run_dir / "gap" / f"step_{step}.npz"
        save_batch(batch, path, step)
        self._last = (
            f"step {step}: gap alarm ({found.cause}): KL(engine || actor) is about {kl:.2g} "
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
