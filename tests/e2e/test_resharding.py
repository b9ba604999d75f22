"""A running engine that was given the trainer's weights answers as a fresh one started on the same HF folder, exactly.

Token by token and log-prob by log-prob, for trainer layouts, engine tensor-parallel sizes, number formats and families,
five rounds in a row with fresh weights. (That the engine's loader receives the folder's bits: tests/parallel/
test_weights.py. vLLM's CPU build packs linear weights and empties the originals, so they can't be read back.)
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_nft.rollout.vllm.environment import engine_environment
from megatron_nft.weights.sync import sync_weights
from tests.conftest import TAKES_MINUTES
from tests.parallel.families import make_folder
from tests.parallel.trainer import LocalEngines, trainer
from tests.remote import Meeting

pytestmark = pytest.mark.e2e

ROUNDS = 5
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
CASES = [
    # Every pair of family, number format and engine tp is there; each layout and carrier, too. Every value of them,
    # in the four that are not long.
    ("qwen2 tied", "float32", 1, "tp=2", "shared_memory"),
    pytest.param("qwen2 tied", "bfloat16", 2, "pp=2 vpp=2", "shared_memory", marks=TAKES_MINUTES),
    ("qwen2", "bfloat16", 1, "tp=2 pp=2", "collective"),
    pytest.param("qwen2", "float32", 2, "tp=1", "shared_memory", marks=TAKES_MINUTES),
    pytest.param("qwen3", "float32", 1, "pp=2", "shared_memory", marks=TAKES_MINUTES),
    ("qwen3", "bfloat16", 2, "tp=2", "collective"),
    ("llama 3", "bfloat16", 1, "pp=2 vpp=2", "collective"),
    pytest.param("llama 3", "float32", 2, "tp=2 pp=2", "shared_memory", marks=TAKES_MINUTES),
    # vLLM has no code of its own for this one: it runs transformers'.
    pytest.param("seed_oss", "float32", 1, "tp=2", "shared_memory", marks=TAKES_MINUTES),
]


class EngineServer:
    """Starts engines in processes of their own, quickly."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        environment = os.environ | engine_environment("cpu", threads=1, tp=2)
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        command = [sys.executable, str(Path(__file__).with_name("engine_server.py"))]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True)

    def begin_engine(self, model, dtype, tp):
        """An engine that is starting: `wait` for it."""
        self.count += 1
        meeting = Meeting(self.folder, f"engine{self.count}")
        print(meeting.address, file=self.process.stdin, flush=True)
        engine = meeting.accept()
        engine.begin("start", str(model), dtype, tp)
        return engine


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = EngineServer(tmp_path_factory.mktemp("s"))
    yield server
    server.process.stdin.close()
    server.process.wait(30)


class Running(LocalEngines):
    """One engine, as weights/sync.py sees all."""

    def __init__(self, engine):
        self.engine = engine

    def start_update(self, names):
        self.engine.call("start_update", names)

    def update(self, manifests):
        self.engine.call("update", [manifest.to_dict() for manifest in manifests])

    def finish_update(self, policy_version):
        self.engine.call("finish_update", policy_version)


def answers_of_a_fresh_engine(server, folder, dtype, tp):
    engine = server.begin_engine(folder, dtype, tp)
    engine.wait()
    answers = engine.call("answers")
    engine.call("stop")
    engine.close()
    return answers


@pytest.mark.parametrize(("family", "dtype", "tp", "layout", "carrier"), CASES)
def test_engine_equals_a_fresh_one_in_five_rounds(server, family, dtype, tp, layout, carrier, tmp_path):
    folders = [make_folder(family, dtype, seed, tmp_path / str(seed)) for seed in range(ROUNDS + 1)]
    engine = server.begin_engine(folders[0], dtype, tp)
    recipe = [
        f"model.path={folders[0]}", "actor.tp=1", *(f"actor.{axis}" for axis in layout.split()),
        f"actor.precision={PRECISIONS[dtype]}", f"rollout.dtype={dtype}", f"rollout.tp={tp}", "weights.bucket_mib=1",
        f"weights.carrier={carrier}",
    ]  # fmt: skip
    with trainer(tmp_path, recipe) as actor:
        engine.wait()
        before = engine.call("answers")
        for version, folder in enumerate(folders[1:], start=1):
            actor.call("read", str(folder))
            sync_weights(actor, Running(engine), version)
            after = engine.call("answers")
            assert [tokens for tokens, _ in after] != [tokens for tokens, _ in before]
            if tp == 1 or version in (1, ROUNDS):  # a fresh engine of two workers takes long to start
                assert after == answers_of_a_fresh_engine(server, folder, dtype, tp)
            before = after
    engine.call("stop")
    engine.close()
