"""What vLLM makes of the project's own engine arguments on H100s that are none. Prints a JSON object a case.

A process of its own (test_vllm.py): vLLM's platform, and what torch says of the device, are put in place for good.
"""

import json
import os
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from megatron_nft.config import RolloutConfig
from megatron_nft.rollout.vllm.environment import engine_environment

os.environ.update(engine_environment("cuda", 1))

import torch

PROPERTIES = SimpleNamespace(
    major=9, minor=0, name="NVIDIA H100 80GB HBM3", total_memory=80 << 30, multi_processor_count=132, uuid="GPU-played"
)


def play() -> None:
    """Two H100s, as torch and vLLM see them."""
    cuda = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 2
    cuda.current_device = lambda: 0
    cuda.get_device_properties = lambda device=None: PROPERTIES
    cuda.get_device_capability = lambda device=None: (PROPERTIES.major, PROPERTIES.minor)
    cuda.get_device_name = lambda device=None: PROPERTIES.name
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform

    vllm.platforms._current_platform = NonNvmlCudaPlatform()


def arguments_of(model: str, rollout: RolloutConfig, **settings: bool) -> dict[str, Any]:
    """What VllmEngine hands to vllm.LLM."""
    import vllm

    from megatron_nft.rollout.api import EngineError
    from megatron_nft.rollout.vllm.engine import VllmEngine

    given: dict[str, Any] = {}

    def keep(**arguments: Any) -> None:
        given.update(arguments)
        raise RuntimeError("kept")

    vllm.LLM = keep
    with suppress(EngineError):
        VllmEngine(model, rollout, device="cuda", max_model_len=512, seed=1, starts_empty=True, **settings)
    return given


def decided(given: dict[str, Any]) -> dict[str, Any]:
    """By vLLM, of what the project relies on."""
    from vllm.engine.arg_utils import EngineArgs

    # As vllm.LLM's own constructor: what it takes besides is tqdm's.
    config = EngineArgs(**{k: v for k, v in given.items() if k != "use_tqdm_on_load"}).create_engine_config()
    parallel, model = config.parallel_config, config.model_config
    return {
        "async_scheduling": config.scheduler_config.async_scheduling,
        "steps_ahead": config.max_concurrent_batches,
        "runner_v2": config.use_v2_model_runner,
        "cudagraphs": config.compilation_config.cudagraph_mode.name,
        "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "executor": parallel.distributed_executor_backend,
        "worker": parallel.worker_cls,
        "worker_extension": parallel.worker_extension_cls,
        "weight_transfer": config.weight_transfer_config.backend,
        "sleep_mode": model.enable_sleep_mode,
        "logprobs_mode": model.logprobs_mode,
        "dtype": str(model.dtype),
        "routed_experts": config.aux_output_config.enabled,
    }


if __name__ == "__main__":
    play()
    for case in json.loads(sys.argv[2]):
        model = case.pop("model", sys.argv[1])
        rollout = RolloutConfig(tp=case.pop("tp"))
        print(json.dumps(decided(arguments_of(model, rollout, **case))))
