"""Which of vLLM's EngineArgs a recipe may not give in `rollout.vllm`, and the setting that says the same here.

Names only: what vLLM makes of the others is found out by its own class, in a process that may import it
(rollout/vllm/arguments.py).
"""

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any

_MODEL = "set model.path, which actor and engines share"
_PLACES = "the engines are rollout.engines x rollout.tp"
_ADAPTERS = "set lora.rank, lora.targets and lora.sync"
_READ = "actor and engines must read the same folder to the same end"
_SAMPLING = (
    "it would change what is sampled and where answers end; set rollout.temperature, top_p, evaluate.temperature, "
    "top_p, and ends of answers in model.path's own generation_config.json (eos_token_id)"
)
_CODE = "it would put other code into the engine"
_NO_TOKENIZER = "the engine would not know where answers end; leave it out"
_OLD_KEYS = (
    "keys and values of older weights would outlive a weight sync; set rollout.gpu_memory_fraction for more room"
)
_SPECULATION = (
    "speculative_config = {method = ..., num_speculative_tokens = ...} says it, and is looked at before a start"
)
_SPLITS = "vLLM's CPU engine dies of an answer's seed when a prompt is split"
_SYNTHETIC = ("rejection_sample_method", "synthetic_acceptance_rates", "synthetic_acceptance_length")

OWN: Mapping[str, str] = {
    "model": _MODEL,
    "model_weights": _MODEL,
    "tokenizer": _MODEL,
    "served_model_name": _MODEL,
    "hf_config_path": _READ,
    "hf_overrides": _READ,
    "model_class_overrides": _READ,
    "load_format": _READ,
    "ignore_patterns": _READ,
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
    "prefill_context_parallel_size": _PLACES,
    "data_parallel_size": _PLACES,
    "data_parallel_rank": _PLACES,
    "data_parallel_start_rank": _PLACES,
    "data_parallel_size_local": _PLACES,
    "data_parallel_address": _PLACES,
    "data_parallel_rpc_port": _PLACES,
    "data_parallel_hybrid_lb": _PLACES,
    "data_parallel_external_lb": _PLACES,
    "data_parallel_multi_port_external_lb": _PLACES,
    "data_parallel_backend": _PLACES,
    "enable_elastic_ep": _PLACES,
    "elastic_ep_max_dp_size": _PLACES,
    "_api_process_count": _PLACES,
    "_api_process_rank": _PLACES,
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
    "aux_output_config": "set actor.routing_replay",
    "enable_lora": _ADAPTERS,
    "max_loras": _ADAPTERS,
    "max_lora_rank": _ADAPTERS,
    "lora_target_modules": _ADAPTERS,
    "lora_dtype": _ADAPTERS,
    "max_cpu_loras": _ADAPTERS,
    "default_mm_loras": _ADAPTERS,
    "enable_tower_connector_lora": _ADAPTERS,
    "enable_moe_shared_loras": _ADAPTERS,
    "max_lora_cls_labels": _ADAPTERS,
    "weight_transfer_config": "set weights.carrier",
    "worker_extension_cls": "it is what takes the actor's weights in",
    "disable_log_stats": "set observe",
    "use_tqdm_on_load": "a log is no terminal",
}
"""Name -> what to do instead."""
UNFIT: Mapping[str, str] = {
    "generation_config": _SAMPLING,
    "override_generation_config": _SAMPLING,
    "logits_processors": "it would change the distribution that is sampled; set rollout.temperature and rollout.top_p",
    "watermark_config": "it would change the distribution that is sampled, which is to be the policy's; leave it out",
    "diffusion_config": "it would replace the scheduler, and the actor's models say token after token; leave it out",
    "scheduler_cls": f"{_CODE}; scheduling_policy is vLLM's own choice",
    "worker_cls": f"{_CODE}: its worker takes the actor's weights in; leave it out",
    "model_impl": f"{_CODE}: weights go into vLLM's own classes of models; leave it out",
    "io_processor_plugin": f"{_CODE}; leave it out: engines take tokens",
    "reasoning_parser_plugin": f"{_CODE}; leave it out: verdict.thoughts finds answers behind thoughts",
    "skip_tokenizer_init": _NO_TOKENIZER,
    "tokens_only": _NO_TOKENIZER,
    "kv_transfer_config": _OLD_KEYS,
    "kv_offloading_size": _OLD_KEYS,
    "kv_offloading_backend": _OLD_KEYS,
    "ec_transfer_config": f"{_CODE}; leave it out: it is for images",
    "spec_method": _SPECULATION,
    "spec_model": _SPECULATION,
    "spec_tokens": _SPECULATION,
}
"""Those that the program leaves at vLLM's defaults, and that no recipe may change: name -> why, and what to do."""
OWN_ON_A_CPU = {
    "enforce_eager": "on a CPU nothing is compiled: it would take longer than the quickstart",
    "enable_chunked_prefill": _SPLITS,
    "enable_expert_parallel": "vLLM's CPU engine dies at its first token; rollout.tp cuts each expert",
}
"""Those besides, where cluster.device is "cpu"."""
UNFIT_ON_A_CPU: Mapping[str, str] = {
    "speculative_config": (
        "with guesses vLLM's CPU engine samples another text than the model's, and its log-probs are no numbers; "
        "leave it out: it is for a GPU"
    ),
    "kv_cache_dtype": "8-bit ones take some processors only, and none has been tried; leave it out: it is for a GPU",
    "long_prefill_token_threshold": f"{_SPLITS}, and longer ones would be; leave it out",
    "mamba_cache_mode": "it splits prompts, and is for Mamba layers, which no model here has; leave it out",
    "max_num_scheduled_tokens": (
        "no prompt is split, and one that is longer would wait for ever; set max_num_batched_tokens to bound a step"
    ),
}
"""And those that the program leaves at vLLM's defaults: name -> why, and what to do."""
WITHOUT_A_MODEL = ("ngram", "ngram_gpu", "suffix")
"""Methods of `speculative_config` that guess from the text, and need no weights."""


def refused(settings: Mapping[str, Any]) -> Iterator[str]:
    """A line for each of the settings that is not the recipe's to give, on any device."""
    yield from _set_by_the_program(settings, OWN)
    for name in settings.keys() & UNFIT.keys():
        yield f"rollout.vllm.{name} = {settings[name]!r} can't be given: {UNFIT[name]}"
    speculation = settings.get("speculative_config")
    if isinstance(speculation, Mapping):
        yield from _refused_speculation(speculation)
    for name, value in settings.items():
        if not _is_finite(value):
            yield f"rollout.vllm.{name} = {value!r}: vLLM takes finite numbers only; give one, or leave it out"
        for key in value if isinstance(value, Mapping) else ():
            if (twin := str(key).replace("-", "_")) in UNFIT and twin.endswith(("_plugin", "_cls", "_processors")):
                yield f"rollout.vllm.{name}.{key} = {value[key]!r} can't be given: {UNFIT[twin]}"


def refused_on_a_cpu(settings: Mapping[str, Any]) -> Iterator[str]:
    """Those besides, where cluster.device is "cpu"."""
    yield from _set_by_the_program(settings, OWN_ON_A_CPU)
    for name in settings.keys() & UNFIT_ON_A_CPU.keys():
        if settings[name] in (0, "none", "auto"):  # as by default
            continue
        yield f"rollout.vllm.{name} = {settings[name]!r} can't be given on a CPU: {UNFIT_ON_A_CPU[name]}"


def refused_of_empty_engines(settings: Mapping[str, Any]) -> Iterator[str]:
    """Those besides, of engines that start without weights, as a training run's do."""
    speculation = settings.get("speculative_config")
    if isinstance(speculation, Mapping) and (method := speculation_method(speculation)) not in WITHOUT_A_MODEL:
        yield (
            f"rollout.vllm.speculative_config = {dict(speculation)!r} is not for training: {method!r} guesses by a "
            "model of its own, engines that start empty fill it with made-up weights, and the actor sends none for it; "
            f"set method to {', '.join(map(repr, WITHOUT_A_MODEL))}, or leave speculative_config out"
        )


def speculation_method(speculation: Mapping[str, Any]) -> str:
    """`speculative_config`'s method, where it says none as vLLM takes it: by `model`, which may be a class's path."""
    method, model = speculation.get("method"), speculation.get("model")
    if method is not None or not isinstance(model, str):
        return str(method or "draft_model")
    if model in ("ngram", "[ngram]"):
        return "ngram"
    parts = model.split(".")
    return "custom_class" if len(parts) > 1 and all(part.isidentifier() for part in parts) else "draft_model"


def allowed(names: Iterable[str], device: str) -> list[str]:
    """Of vLLM's arguments those that a recipe may give."""
    not_ours = {*OWN, *UNFIT, *((*OWN_ON_A_CPU, *UNFIT_ON_A_CPU) if device == "cpu" else ())}
    return [name for name in names if name not in not_ours]


def _is_finite(value: Any) -> bool:
    """Whether all numbers are, of a value as TOML has it."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or isfinite(value)


def _refused_speculation(speculation: Mapping[str, Any]) -> Iterator[str]:
    if speculation_method(speculation) == "custom_class":
        said = "method" if "method" in speculation else "model"
        yield (
            f"rollout.vllm.speculative_config.{said} = {speculation[said]!r} can't be given: {_CODE}; choose vLLM's "
            "own, and say which by method"
        )
    for key, value in speculation.items():
        if key.replace("-", "_") in _SYNTHETIC and value not in ("standard", "block", None):
            yield (
                f"rollout.vllm.speculative_config.{key} = {value!r} can't be given: guesses would be kept by a rate of "
                'their own, not by the policy; set rejection_sample_method = "standard"'
            )


def _set_by_the_program(settings: Mapping[str, Any], own: Mapping[str, str]) -> Iterator[str]:
    for name in settings.keys() & own.keys():
        yield f"rollout.vllm.{name} = {settings[name]!r} is set by the program: {own[name]}"
