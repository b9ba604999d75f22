"""Which of vLLM's EngineArgs a recipe may not give in `rollout.vllm`, and the setting that says the same here.

Names only: what vLLM makes of the others is found out by its own class, in a process that may import it
(rollout/vllm/arguments.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

_MODEL = "set model.path, which actor and engines share"
_PLACES = "the engines are rollout.engines x rollout.tp"
_ADAPTERS = "set lora.rank, lora.targets and lora.sync"
_READ = "actor and engines must read the same folder to the same end"

OWN: Mapping[str, str] = {
    "model": _MODEL,
    "model_weights": _MODEL,
    "tokenizer": _MODEL,
    "served_model_name": _MODEL,
    "hf_config_path": _READ,
    "hf_overrides": _READ,
    "model_class_overrides": _READ,
    "load_format": _READ,
    "config_format": _READ,
    "tokenizer_mode": _READ,
    "trust_remote_code": "no code of a model folder is run",
    "revision": "model.path is a folder, which has one",
    "code_revision": "model.path is a folder, which has one",
    "tokenizer_revision": "model.path is a folder, which has one",
    "hf_token": "engines start without a network",
    "runner": "engines generate",
    "convert": "engines generate",
    "dtype": "set rollout.dtype",
    "seed": "set run.seed",
    "max_model_len": "set data.max_prompt_tokens and rollout.max_answer_tokens",
    "max_num_seqs": "set rollout.max_concurrent",
    "tensor_parallel_size": "set rollout.tp",
    "pipeline_parallel_size": _PLACES,
    "data_parallel_size": _PLACES,
    "nnodes": _PLACES,
    "node_rank": _PLACES,
    "master_addr": _PLACES,
    "master_port": _PLACES,
    "device_ids": _PLACES,
    "distributed_executor_backend": _PLACES,
    "gpu_memory_utilization": "set rollout.gpu_memory_fraction",
    "kv_cache_memory_bytes": "set rollout.kv_cache_gib on a CPU, rollout.gpu_memory_fraction on a GPU",
    "enable_sleep_mode": "set cluster.placement",
    "logprobs_mode": "the log-probs must be those of the distribution that is sampled",
    "max_logprobs": "set rollout.top_logprobs",
    "enable_return_routed_experts": "set actor.routing_replay",
    "enable_lora": _ADAPTERS,
    "max_loras": _ADAPTERS,
    "max_lora_rank": _ADAPTERS,
    "lora_target_modules": _ADAPTERS,
    "weight_transfer_config": "set weights.carrier",
    "worker_extension_cls": "it is what takes the actor's weights in",
    "disable_log_stats": "set observe",
    "use_tqdm_on_load": "a log is no terminal",
}
"""Name -> what to do instead."""
OWN_ON_A_CPU = {
    "enforce_eager": "on a CPU nothing is compiled: it would take longer than the quickstart",
    "enable_chunked_prefill": "vLLM's CPU engine dies of an answer's seed when a prompt is split",
    "enable_expert_parallel": "vLLM's CPU engine dies at its first token; rollout.tp cuts each expert",
}
"""Those besides, where cluster.device is "cpu"."""


def refused(settings: Mapping[str, Any], own: Mapping[str, str]) -> Iterator[str]:
    """A line for each of the settings that is not the recipe's to give."""
    for name in settings.keys() & own.keys():
        yield f"rollout.vllm.{name} = {settings[name]!r} is set by the program: {own[name]}"
