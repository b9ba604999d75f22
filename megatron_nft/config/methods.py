"""The table of methods: what `algorithm.name` may be, which settings a name stands for, and which file has its loss.

Loads nothing heavy: AlgorithmConfig reads names and settings here, nft/methods imports the files when a group or a loss
is at hand. A new method is a file with a METHOD (nft/methods/clipped.py is one) and its line below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """What is known of a method before anything is computed."""

    module: str
    """Has the METHOD (nft/methods): its loss, what that takes, its metrics."""
    preset: Mapping[str, Any] = field(default_factory=dict)
    """What the name sets otherwise than the fields of AlgorithmConfig, which are NFT's. A recipe may override."""
    unread: tuple[str, ...] = ()
    """Settings of AlgorithmConfig that its loss doesn't read: a recipe that changes them is refused."""
    takes_scores: bool = False
    """It learns from rewards, so that a grader may give any score from 0 to 1. False: from right and wrong."""


_NFT, _CLIPPED = "megatron_nft.nft.methods.nft", "megatron_nft.nft.methods.clipped"
_OF_NFT, _OF_CLIPPED = ("clamp_negative",), ("clip_low", "clip_high", "overlong_share")

METHODS: dict[str, MethodRow] = {
    "nft": MethodRow(module=_NFT, unread=_OF_CLIPPED),
    "rft": MethodRow(module=_NFT, preset={"neg_weight": 0.0}, unread=(*_OF_CLIPPED, *_OF_NFT)),
    "grpo": MethodRow(
        module=_CLIPPED,
        preset={"neg_weight": -1.0, "normalize": 2, "reduction": "sequences"},
        unread=_OF_NFT,
        takes_scores=True,
    ),
    "dr_grpo": MethodRow(
        module=_CLIPPED,
        preset={"neg_weight": -1.0, "normalize": 1, "reduction": "constant"},
        unread=_OF_NFT,
        takes_scores=True,
    ),
    "dapo": MethodRow(
        module=_CLIPPED,
        preset={"neg_weight": -1.0, "normalize": 2, "clip_high": 0.28, "overlong_penalty": 1.0},
        unread=_OF_NFT,
        takes_scores=True,
    ),
}

CLIPPED = tuple(name for name, row in METHODS.items() if row.module == _CLIPPED)
"""The methods with the clipped policy-gradient objective, those of neg_weight = -1."""
