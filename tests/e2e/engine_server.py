"""Run by engines.py in its own process: imports vllm once, then forks an engine's process for each address on stdin.

Each child serves one `EngineJob` (tests/remote.py) at its address. Needs `engine_environment`.
"""

import multiprocessing
import sys
from typing import Any

import vllm.model_executor.models.llama
import vllm.model_executor.models.qwen2
import vllm.model_executor.models.qwen3
import vllm.model_executor.models.qwen3_moe
import vllm.v1.worker.cpu_worker  # noqa: F401
from vllm import LLM  # noqa: F401

from megatron_nft.rollout.api import Sampling, answer_here
from megatron_nft.types import RolloutGroup
from tests.e2e import engine_jobs, expert_jobs
from tests.remote import serve


class EngineJob:
    """An engine, started by `start`; or a function of engine_jobs.py or expert_jobs.py that makes its own."""

    def start(
        self, model: str, dtype: str, tp: int, lora: dict[str, Any] | None = None, adapter: str | None = None
    ) -> None:
        self.engine = engine_jobs.make_engine(model, dtype, tp, lora=lora)
        if adapter is not None:
            engine_jobs.read_adapter(self.engine, adapter)
        self.start_update, self.update = self.engine.start_update, self.engine.update
        self.finish_update = self.engine.finish_update

    def answers(self) -> list[tuple[list[int], list[float]]]:
        """Greedy answers to long prompts with their log-probs, twice: the second time from the prefix cache."""
        groups = [group for _ in range(2) for group in engine_jobs.greedy(self.engine)]
        return [(r.token_ids_A.tolist(), r.engine_logprobs_A.tolist()) for g in groups for r in g.rollouts]

    def sample(self, sampling: Sampling) -> list[RolloutGroup]:
        """Sampled answers to the same prompts."""
        return answer_here(self.engine, engine_jobs.make_prompts(engine_jobs.LONG), sampling)

    def run(self, job: str, arguments: dict[str, Any]) -> Any:
        return (getattr(engine_jobs, job, None) or getattr(expert_jobs, job))(**arguments)

    def stop(self) -> None:
        self.engine.shutdown()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    for line in sys.stdin:
        context.Process(target=serve, args=(line.strip(), EngineJob())).start()
