"""Adapters in vLLM: how an engine is started for them, and how new ones take the old ones' place, from memory.

`LoRARequest`s name the one adapter by its number; the tensors come through the weight transfer (receive.py), not from
the folder that a request names. Adapted to vLLM 0.32.0, whose own way in (`add_lora` with load_inplace) reads files:
`install` does what its worker does after it has read them. Remove when vLLM takes an adapter's tensors.
"""

from typing import Any

from torch import Tensor, nn
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from megatron_nft.families.hf_config import HFConfig, read_hf_config
from megatron_nft.families.lora import Adapters, peft_config, peft_targets

NUMBER = 1
REQUEST = LoRARequest("policy", NUMBER, "(comes with the weight transfer)")
"""Of every request: vLLM adds the adapter to the model for it."""


def lora_settings(adapters: Adapters, engine_rank: int, model_path: str) -> dict[str, Any]:
    """What vLLM is started with.

    Args:
        engine_rank: a rank that vLLM knows, no smaller than the adapters'.
    """
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": engine_rank,
        "lora_target_modules": peft_targets(read_hf_config(model_path), adapters),
    }


def from_plain(given: dict[str, Any]) -> Adapters:
    """Of what an RPC makes of `asdict`."""
    return Adapters(**given | {"targets": tuple(given["targets"])})


def install(model: nn.Module, hf: HFConfig, adapters: Adapters, tensors: dict[str, Tensor]) -> None:
    """Puts new tensors in place of a worker's adapter; takes this worker's tensor-parallel slices of them.

    Args:
        tensors: whole ones, by PEFT's names. vLLM changes them.
    """
    manager = model.lora_manager
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    lora = LoRAModel.from_lora_tensors(
        NUMBER,
        tensors,
        PEFTHelper.from_dict(peft_config(hf, adapters, base="")),
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        model_vocab_size=manager.vocab_size,
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    lora.is_3d_lora_weight = False
    manager.remove_adapter(NUMBER)
    manager.add_adapter(lora)
    manager.activate_adapter(NUMBER)
