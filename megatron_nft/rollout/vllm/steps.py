"""What an engine's decode steps had to do: vLLM's own counts after each, added up. Called by engine.py."""

from typing import Any

from megatron_nft.rollout.api import DecodeSteps


class StepCounts:
    """Of one engine, by the stream that was being asked for."""

    def __init__(self, llm: Any) -> None:
        self._core = llm.llm_engine.engine_core.engine_core
        self._steps: dict[str, DecodeSteps] = {}

    def counts(self) -> tuple[int, int]:
        """Answers that are decoded now, and that wait."""
        return self._core.scheduler.get_request_counts()

    def note(self, stream: str) -> None:
        """A step is done."""
        kv_use = self._core.scheduler.kv_cache_manager.usage
        self._steps.setdefault(stream, DecodeSteps()).add(*self.counts(), kv_use)

    def take(self) -> dict[str, DecodeSteps]:
        """Since the last call."""
        found, self._steps = self._steps, {}
        return found
