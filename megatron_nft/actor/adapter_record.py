"""What a checkpoint of adapters says of itself: what they are, and the digest of the model that they belong to.

Written and compared by checkpoint.py, read by checkpoint_tools. No torch here.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_nft.actor.manifest import CheckpointError
from megatron_nft.families.lora import Adapters

ADAPTER = "adapter"
"""Its key in what all ranks of a checkpoint have alike."""


def adapter_record(adapters: Adapters, *, base: str, base_digest: str) -> dict[str, Any]:
    """Plain values."""
    return {**asdict(adapters), "targets": list(adapters.targets), "base": base, "base_digest": base_digest}


def adapters_of(record: Mapping[str, Any]) -> Adapters:
    """What they are."""
    return Adapters(
        rank=record["rank"], alpha=record["alpha"], rslora=record["rslora"], targets=tuple(record["targets"])
    )


def check_same_adapter(folder: Path, saved: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
    """
    Args:
        saved: of a checkpoint; None: it has the whole model.
        now: of who goes on from it.

    Raises:
        CheckpointError: the one has adapters and the other hasn't, they are others, or of another model.
    """
    if saved is None and now is None:
        return
    if saved is None:
        raise CheckpointError(
            f"{folder}: has the whole model, and lora.rank = {now['rank']}; leave [lora] out to go on from it, or give "
            "it as model.path to begin adapters on it"
        )
    if now is None:
        raise CheckpointError(
            f"{folder}: has adapters of {saved['base']} only, and lora.rank is 0; set [lora] as the recipe beside it, "
            "or make a whole model of it (megatron-nft convert megatron-to-hf --base)"
        )
    for key in ("rank", "alpha", "rslora", "targets"):
        if (was := saved[key]) != now[key]:
            raise CheckpointError(
                f"{folder}: has adapters with lora.{key} = {was!r}, now it is {now[key]!r}; set it so"
            )
    if saved["base_digest"] != now["base_digest"]:
        raise CheckpointError(
            f"{folder}: its adapters belong to {saved['base']} as it was ({saved['base_digest'][:15]}...), and the "
            f"weights of model.path = {now['base']!r} are others ({now['base_digest'][:15]}...); give model.path those"
        )
