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
_OF_NFT, _OF_CLIPPED = (
    ("clamp_negative",),
    ("clip_low", "clip_high"),
)  # overlong_share: neg_weight -1 reads the recipe's

METHODS: dict[str, MethodRow] = {
    "nft": MethodRow(module=_NFT, unread=_OF_CLIPPED),
    "rft": MethodRow(  # the paper's: w = 1
        module=_NFT, preset={"neg_weight": 0.0, "normalize": 0}, unread=(*_OF_CLIPPED, *_OF_NFT)
    ),
    "rft_script": MethodRow(  # the authors' script's: 1 - p
        module=_NFT, preset={"neg_weight": 0.0, "normalize": 1}, unread=(*_OF_CLIPPED, *_OF_NFT)
    ),
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
NFT_LOSS = tuple(name for name, row in METHODS.items() if row.module == _NFT)
"""The methods with NFT's loss."""
ANY_PRESET = {key for row in METHODS.values() for key in row.preset} | {"published_ranks"}
"""Settings that are a method's own."""


def method_named(algorithm: Mapping[str, Any]) -> Any:
    """The method that a table of settings means."""
    return algorithm.get("name", "dapo" if algorithm.get("neg_weight") == -1 else "nft")


def left_behind(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
    """Which of a recipe's settings don't hold where the command line's mean another method than its own: what either
    method stands for, and of one with another loss all that is a method's own. So -1 makes DAPO of an NFT recipe."""
    before = method_named(recipe)
    after = given.get("name", before)
    if "name" not in given and given.get("neg_weight") == -1 and before not in CLIPPED:
        after = "dapo"
    rows = [METHODS.get(name) if isinstance(name, str) else None for name in (before, after)]
    if before == after or None in rows:
        return set()
    same_loss = rows[0].module == rows[1].module
    return {"name", *rows[0].preset, *rows[1].preset, *(() if same_loss else ANY_PRESET)}
