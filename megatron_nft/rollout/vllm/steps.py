"""What an engine's decode steps had to do: vLLM's own counts after each, added up. Called by engine.py."""

from typing import Any

from megatron_nft.rollout.api import DecodeSteps


class StepCounts:
    """Of one engine, by the stream that was being asked for."""

    def __init__(self, llm: Any) -> None:
        self._core = llm.llm_engine.engine_core.engine_core
        self._steps: dict[str, DecodeSteps] = {}

    def counts(self) -> tuple[int, int, float]:
        """Answers that are decoded now, answers that wait, share of the KV cache in use."""
        scheduler = self._core.scheduler
        return *scheduler.get_request_counts(), scheduler.get_kv_cache_usage()

    def note(self, stream: str) -> None:
        """A step is done."""
        self._steps.setdefault(stream, DecodeSteps()).add(*self.counts())

    def take(self) -> dict[str, DecodeSteps]:
        """Since the last call."""
        found, self._steps = self._steps, {}
        return found
