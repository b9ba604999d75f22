"""What a vLLM engine is started with: the program's own settings, and the recipe's further ones (`rollout.vllm`).

engine.py hands them to vLLM. `check_arguments` has vLLM's own class take them before anything starts, in a process of
its own, since vLLM changes the one that imports it:

    python -m megatron_nft.rollout.vllm.arguments RECIPE [section.key=value ...]      # exit status 0, or 2 and why not

run/parts.py, evaluate.py and doctor call it.
"""

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from megatron_nft.config import Config, LoraConfig, RecipeError, RolloutConfig, load_config
from megatron_nft.config.vllm_settings import allowed, refused_of_empty_engines
from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.rollout.vllm.cache import cache_problem
from megatron_nft.rollout.vllm.environment import cpu_settings, engine_environment, model_settings
from megatron_nft.rollout.vllm.experts import experts_settings
from megatron_nft.rollout.vllm.fields import check_types, words

CHECK_TIMEOUT_S = 300.0
MAX_LOGPROBS = 20
"""Likeliest tokens that an engine may be asked for whatever its recipe says: vLLM's own limit."""
PROPOSERS = {"ngram": "vllm.v1.spec_decode.ngram_proposer", "suffix": "vllm.v1.spec_decode.suffix_decoding"}
"""What guesses tokens without a model, and needs packages that vLLM doesn't bring."""


def engine_arguments(
    model_path: str,
    config: RolloutConfig,
    *,
    device: str,
    max_model_len: int,
    seed: int,
    is_colocated: bool,
    starts_empty: bool,
    gives_experts: bool = False,
    lora: LoraConfig | None = None,
) -> dict[str, Any]:
    """vLLM's EngineArgs, by name, in a process that has imported vllm. The arguments are VllmEngine's.

    Raises:
        ModelFolderError: the folder holds no model that training knows, or none that vLLM can run.
    """
    from vllm.config import WeightTransferConfig

    from megatron_nft.rollout.vllm import adapter, receive

    adapters = lora and lora.adapters
    on_cuda = {"gpu_memory_utilization": config.gpu_memory_fraction, "enable_sleep_mode": is_colocated}
    return {
        "model": model_path,
        "dtype": config.dtype,
        "seed": seed,
        "tensor_parallel_size": config.tp,
        "distributed_executor_backend": "uni" if config.tp == 1 else "mp",
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_concurrent,
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": max(config.top_logprobs, MAX_LOGPROBS),
        "weight_transfer_config": WeightTransferConfig(backend=receive.BACKEND),
        "worker_extension_cls": receive.EXTENSION,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **experts_settings(device, gives_experts),
        **model_settings(model_path, max_model_len, device, starts_empty and not adapters),
        **(adapter.lora_settings(adapters, lora.engine_rank, model_path) if adapters else {}),
        **(cpu_settings(config, max_model_len) if device == "cpu" else on_cuda),
        **config.vllm,
    }


def check_arguments(config: Config, *, starts_empty: bool = True) -> None:
    """Whether vLLM takes what `rollout.vllm` gives, as far as this machine can tell: without a GPU, of what is for one,
    names and types only. Nothing to do without such settings.

    Args:
        starts_empty: its engines read no weights, as a training run's, unless it syncs adapters alone.

    Raises:
        RecipeError: it doesn't.
    """
    if not config.rollout.vllm:
        return
    environment = engine_environment(config.cluster.device, 1, config.rollout.tp)
    command = [sys.executable, "-m", "megatron_nft.rollout.vllm.arguments"]
    try:
        checked = subprocess.run(
            command,
            input=json.dumps([starts_empty, config.model_dump_json()]),
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=CHECK_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise RecipeError(f"rollout.vllm: vLLM did not say within {CHECK_TIMEOUT_S:g} s what it makes of it") from None
    if checked.returncode:
        said = checked.stderr.strip().splitlines()
        raise RecipeError(said[-1] if said else f"rollout.vllm: the check ended with status {checked.returncode}")


def no_argument(name: str, names: Sequence[str]) -> str:
    """What is said of a name that vLLM hasn't.

    Args:
        names: those that a recipe may give: none that is refused, too, is worth a try.
    """
    near = difflib.get_close_matches(name, names, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"rollout.vllm.{name} is no argument of this vLLM's engines{meant}"


def why_not(config: Config, *, starts_empty: bool = True) -> str | None:
    """What is against the recipe's settings, in a line; None: nothing. In a process that may import vllm.

    Args:
        starts_empty: as in `check_arguments`.
    """
    import dataclasses

    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    names = [field.name for field in dataclasses.fields(EngineArgs)]
    for name in config.rollout.vllm:
        if name not in names:
            return no_argument(name, allowed(names, config.cluster.device))
    given = json.dumps(config.rollout.vllm)
    try:
        check_types(config.rollout.vllm)
        if starts_empty and not config.syncs_adapter:
            for line in refused_of_empty_engines(config.rollout.vllm):
                return line
        arguments = engine_arguments(
            str(config.model.hf_folder),
            config.rollout,
            device=config.cluster.device,
            max_model_len=config.max_sequence_tokens,
            seed=config.run.seed,
            is_colocated=config.is_colocated,
            starts_empty=starts_empty,
            gives_experts=config.replays_engine,
            lora=config.lora if config.syncs_adapter else None,
        )
        if (problem := cache_problem(arguments, config.cluster.device)) is not None:
            return f"rollout.vllm = {given}: {problem}"
        made = EngineArgs(**arguments)
        if current_platform.is_cpu() if config.cluster.device == "cpu" else current_platform.is_cuda():
            made.create_engine_config(UsageContext.LLM_CLASS)
            if (method := (config.rollout.vllm.get("speculative_config") or {}).get("method")) in PROPOSERS:
                import_module(PROPOSERS[method])
    except Exception as error:
        return f"rollout.vllm = {given}: vLLM refuses it: {words(error)}"
    return None


def main(argv: Sequence[str]) -> int:
    """See the module. Without arguments: what `check_arguments` starts, with its own as JSON for input."""
    try:
        wrong = None
        if argv:
            check_arguments(load_config(argv[0], argv[1:], trains=False))
        else:
            starts_empty, config = json.load(sys.stdin)
            wrong = why_not(Config.model_validate_json(config), starts_empty=starts_empty)
    except (RecipeError, ModelFolderError) as error:
        wrong = str(error)
    if wrong is not None:
        print(wrong, file=sys.stderr, flush=True)
        os._exit(2)  # nothing that vLLM has begun is to say more
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
