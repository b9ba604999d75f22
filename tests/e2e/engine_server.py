"""Run by test_resharding.py in its own process: imports vllm once, then forks an engine for each address on stdin.

Each child serves one `EngineJob` (tests/remote.py) at its address. Needs `engine_environment`.
"""

import multiprocessing
import sys

import vllm.model_executor.models.llama
import vllm.model_executor.models.qwen2
import vllm.model_executor.models.qwen3
import vllm.v1.worker.cpu_worker  # noqa: F401
from vllm import LLM  # noqa: F401

from tests.e2e.engine_jobs import greedy, make_engine
from tests.remote import serve


class EngineJob:
    """An engine, started by `start`."""

    def start(self, model: str, dtype: str, tp: int) -> None:
        self.engine = make_engine(model, dtype, tp)
        self.start_update, self.update = self.engine.start_update, self.engine.update
        self.finish_update = self.engine.finish_update

    def answers(self) -> list[tuple[list[int], list[float]]]:
        """Greedy answers to long prompts with their log-probs, twice: the second time from the prefix cache."""
        groups = [group for _ in range(2) for group in greedy(self.engine)]
        return [(r.token_ids_A.tolist(), r.engine_logprobs_A.tolist()) for g in groups for r in g.rollouts]

    def stop(self) -> None:
        self.engine.shutdown()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    for line in sys.stdin:
        context.Process(target=serve, args=(line.strip(), EngineJob())).start()
