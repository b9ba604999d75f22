"""A recipe's bytes in its run folder: a checkpoint, all that lie there at once, the trained model.

A recipe and its model's dimensions come in, bytes go out; doctor compares them with what the disk has. What a
checkpoint holds: actor/checkpoint.py.
"""

from dataclasses import dataclass

from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.families.lora import adapter_parameters
from megatron_nft.families.parameters import parameters
from megatron_nft.plan.memory import weight_element_bytes
from megatron_nft.plan.parameters import MASTER_BYTES, MOMENT_BYTES


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes, and of what."""

    checkpoint: int
    checkpoints: int  # at once: those that are kept, and the one that is being written
    model: int  # in hf/

    @property
    def total(self) -> int:
        return self.checkpoint * self.checkpoints + self.model


def plan_disk(config: Config, hf: HFConfig) -> Disk:
    """Weights, their fp32 masters (of fp32 weights, too) and Adam's two moments, each number once, whatever the layout;
    asynchronous runs save groups of answers on top, which are little beside them. Of adapters it is theirs."""
    numbers, element = sum(parameter.numel for parameter in parameters(hf)), weight_element_bytes(config)
    adapters = config.lora.adapters
    trained = numbers if adapters is None else sum(parameter.numel for parameter in adapter_parameters(hf, adapters))
    settings, kept = config.checkpoint, 0
    if settings.every:
        kept = settings.keep_last + 1
        if settings.keep_every:
            kept += config.train.steps // settings.keep_every
        kept = min(kept, -(-config.train.steps // settings.every))
    return Disk(checkpoint=trained * (element + MASTER_BYTES + MOMENT_BYTES), checkpoints=kept, model=numbers * element)
