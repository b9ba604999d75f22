"""vLLM engines in processes of their own, without Ray: forked from one that has imported vLLM, so they start soon."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from megatron_nft.rollout.vllm.environment import engine_environment
from tests.remote import Meeting, Remote

AT_A_TIME = 2
LIMIT_S = 240.0


class EngineServer:
    """Starts them. What they do: engine_server.py.

    Args:
        folder: for sockets, whose paths must be short.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        environment = os.environ | engine_environment("cpu", threads=1)
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        command = [sys.executable, str(Path(__file__).with_name("engine_server.py"))]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)

    def fork(self) -> Remote:
        """A new process, which serves an `EngineJob`."""
        self._count += 1
        meeting = Meeting(self._folder, f"engine{self._count}")
        print(meeting.address, file=self._process.stdin, flush=True)
        return meeting.accept()

    def begin_engine(self, model: Path, dtype: str, tp: int, *lora: Any) -> Remote:
        """An engine that is starting: `wait` for it.

        Args:
            lora: settings of [lora], and a PEFT folder that vLLM is to read itself.
        """
        engine = self.fork()
        engine.begin("start", str(model), dtype, tp, *lora)
        return engine

    def run(self, jobs: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        """Functions of engine_jobs.py with their arguments, each in a process of its own: what they return, or the text
        of a traceback."""
        results: dict[str, Any] = {}
        running: dict[str, Remote] = {}

        def finish(name: str) -> None:
            process = running.pop(name)
            try:
                results[name] = process.wait(LIMIT_S)
            except AssertionError as error:
                results[name] = str(error)
            process.close()

        for name, (job, arguments) in jobs.items():
            if len(running) == AT_A_TIME:
                finish(next(iter(running)))
            running[name] = self.fork()
            running[name].begin("run", job, arguments)
        for name in list(running):
            finish(name)
        return results
