"""What vLLM needs before and at its start: its process's environment, and the settings of its CPU engine.

cluster/fleet.py starts engines with the former; engine.py hands the latter to vLLM.
"""

import os
from functools import partial
from typing import Any

from megatron_nft.config import RolloutConfig
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.registry import family_of
from megatron_nft.families.rope import rope_parameters
from megatron_nft.families.serving import check_served

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""For processes on a CPU that allocate tensors again and again: the kernel zeroes their pages, and huge ones come
faster. A process has it when it starts, or never; the ranks' have it, too (cluster/ranks.py)."""


def engine_environment(device: str, threads: int, tp: int = 1, index: int = 0) -> dict[str, str]:
    """The environment that a process needs before it imports vllm, for `device` "cpu" or "cuda".

    Args:
        threads: on a CPU, no more than the cores that this engine has to itself: OpenMP's threads spin while they wait,
            and two of them on shared cores were measured 10 times slower than one.
        tp: tensor-parallel size of the engine.
        index: of this engine among all.
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine loop runs in the caller's process, and fails there
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
    }
    if device == "cpu":
        # Otherwise vLLM compiles helpers for 8-25 s at the first step, even with enforce_eager.
        environment["TORCHDYNAMO_DISABLE"] = "1"
        environment |= HUGE_PAGES  # an update allocates every layer anew
        # oneDNN keeps a kernel for each number of rows it has met, up to 1,024 of them: 0.6 GB after forty rounds of
        # the quickstart, which took as long with 16.
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"
        if tp > 1:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(core) for core in _cores(tp, index))
    return environment


def _cores(tp: int, index: int) -> list[int]:
    """One of this machine's cores for each tensor-parallel worker; vLLM's own choice fails on small machines."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[(index * tp + rank) % len(cores)] for rank in range(tp)]


def model_settings(model_path: str, max_model_len: int, device: str, starts_empty: bool) -> dict[str, Any]:
    """What has vLLM read the folder as training does: the same files, and config.json to the same end.

    Raises:
        ModelFolderError: the folder holds no model that training knows, or none that vLLM can run.
    """
    hf = read_hf_config(model_path)
    check_served(hf, model_path, max_tokens=max_model_len, device=device)
    return {
        "hf_overrides": partial(_as_training_reads, family_of(hf).architecture, rope_parameters(hf)),
        # By itself vLLM prefers Mistral's own files (params.json, consolidated.safetensors) where they lie beside.
        "load_format": "dummy" if starts_empty else "hf",
        "config_format": "hf",
        "tokenizer_mode": "hf",
    }


def _as_training_reads(architecture: str | None, rope: dict[str, Any], config: Any) -> Any:
    """Without an architecture vLLM takes one that can't generate; and of rope it wants every number, as a number."""
    if architecture is not None:
        config.architectures = [architecture]
    config.rope_parameters = rope
    return config


def cpu_settings(config: RolloutConfig, max_model_len: int) -> dict[str, Any]:
    """What vLLM's CPU engine is started with beside what every engine is."""
    return {
        "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        "enforce_eager": True,
        # vLLM 0.32's CPU engine dies of a per-request seed when a prompt is split over steps ("CPU Generator does not
        # use offset"), so no prompt may be. Remove when gpu_model_runner no longer calls Generator.set_offset there.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, max_model_len),
        # A prompt is computed once for its group as far as whole blocks go, and short ones fill none of vLLM's 128
        # tokens: 32, the fewest that its CPU attention takes at speed, save 29% of the quickstart's sampling.
        "block_size": 32,
    }
