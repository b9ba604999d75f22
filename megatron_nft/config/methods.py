"""The table of methods: what `algorithm.name` may be, which settings a name stands for, and which file has its loss.

Loads nothing heavy: AlgorithmConfig reads names and settings here, nft/methods imports the files when a group or a loss
is at hand. A new method is a file with a METHOD (nft/methods/clipped.py is one) and its line below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    ratio_of_answers: bool = False
    """Its likelihood ratio is an answer's, whatever ratio_type: an answer counts once, and no token by itself."""
    ratio_is_weight: bool = False
    """Its likelihood ratio, an answer's, too, only weighs the log-prob that each token has: any reduction will do."""
    learns_from_unmixed: bool = False
    """It compares no answer with its group's: a group that is all right, or all wrong, is trained on, too."""


_FILES = "megatron_nft.nft.methods"
_NFT, _CLIPPED, _REINFORCE = f"{_FILES}.nft", f"{_FILES}.clipped", f"{_FILES}.reinforce"
_WEIGHTS = ("pos_weight", "pos_weight_end", "neg_weight_end", "schedule_steps")
_CLIPS = ("clip_low", "clip_high")
_OWN = (*_WEIGHTS, *_CLIPS, "dual_clip", "baseline_shift", "clamp_negative", "ratio_type", "normalize")
"""Settings that some method doesn't read. overlong_share is none of them: neg_weight -1 reads the recipe's."""


def _all_but(*read: str) -> tuple[str, ...]:
    return tuple(key for key in _OWN if key not in read)


def _clipped(module: str = _CLIPPED, *, reads: tuple[str, ...] = ("dual_clip",), **preset: Any) -> MethodRow:
    """One that learns from advantages within the group, with the likelihood ratio clipped."""
    return MethodRow(
        module=module,
        preset={"neg_weight": -1.0, **preset},
        unread=_all_but(*_CLIPS, "normalize", *reads),
        takes_scores=True,
    )


def _signed(**preset: Any) -> MethodRow:
    """One that learns from signs: right answers up, wrong ones down."""
    return MethodRow(
        module=_REINFORCE,
        preset={"normalize": 0, **preset},
        unread=_all_but(*_CLIPS, *_WEIGHTS, "normalize"),
        learns_from_unmixed=True,
    )


METHODS: dict[str, MethodRow] = {
    "nft": MethodRow(module=_NFT, unread=_all_but(*_WEIGHTS, "clamp_negative", "ratio_type", "normalize")),
    "rft": MethodRow(  # the paper's: w = 1
        module=_NFT, preset={"neg_weight": 0.0, "normalize": 0}, unread=_all_but("ratio_type", "normalize")
    ),
    "rft_script": MethodRow(  # the authors' script's: 1 - p
        module=_NFT, preset={"neg_weight": 0.0, "normalize": 1}, unread=_all_but("ratio_type", "normalize")
    ),
    "grpo": _clipped(normalize=2, reduction="sequences"),
    "dr_grpo": _clipped(normalize=1, reduction="constant"),
    "dapo": _clipped(normalize=2, clip_high=0.28, overlong_penalty=1.0),
    "gspo": replace(
        _clipped(f"{_FILES}.gspo", reads=(), normalize=2, clip_low=3e-4, clip_high=4e-4, reduction="sequences"),
        ratio_of_answers=True,
    ),
    "cispo": _clipped(f"{_FILES}.cispo", reads=(), normalize=2, clip_low=1.0, clip_high=4.0),
    "maxrl": _clipped(normalize=3),
    "topr": MethodRow(
        module=f"{_FILES}.topr",
        preset={"normalize": 0, "ratio_type": "sequence", "reduction": "sequences"},
        unread=_all_but(*_WEIGHTS, "ratio_type", "normalize"),
        ratio_is_weight=True,
        learns_from_unmixed=True,
    ),
    "psr": _signed(neg_weight=0.0),
    "nsr": _signed(pos_weight=0.0),
    "w_reinforce": _signed(pos_weight=0.1),
    "asymre": MethodRow(
        module=f"{_FILES}.asymre",
        unread=("neg_weight", *_all_but("baseline_shift")),
        takes_scores=True,
        learns_from_unmixed=True,  # less the shift
    ),
}

SFT = "sft"
"""No method of a run that samples: it learns given answers."""
METHODS[SFT] = MethodRow(module=f"{_FILES}.sft", unread=("neg_weight", *_OWN))

CLIPPED = tuple(name for name, row in METHODS.items() if row.preset.get("neg_weight") == -1)
"""The methods that learn from clipped advantages, those of neg_weight = -1."""
SCORED = tuple(name for name, row in METHODS.items() if row.takes_scores)
"""The methods that learn from rewards."""
NFT_LOSS = tuple(name for name, row in METHODS.items() if row.module == _NFT)
"""The methods with NFT's loss."""
ANY_PRESET = {key for row in METHODS.values() for key in row.preset} | {"published_ranks"}
"""Settings that are a method's own."""


def method_named(algorithm: Mapping[str, Any]) -> Any:
    """The method that a table of settings means."""
    return algorithm.get("name", "dapo" if algorithm.get("neg_weight") == -1 else "nft")


def readers_of(setting: str) -> tuple[str, ...]:
    """The methods that read a setting."""
    return tuple(name for name, row in METHODS.items() if setting not in row.unread)


def left_behind(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
    """Which of a recipe's settings don't hold where the command line's mean another method than its own: what either
    method stands for, what the other doesn't read, and of one with another loss all that is a method's own. So -1 makes
    DAPO of an NFT recipe."""
    before = method_named(recipe)
    after = given.get("name", before)
    if "name" not in given and given.get("neg_weight") == -1 and before not in CLIPPED:
        after = "dapo"
    rows = [METHODS.get(name) if isinstance(name, str) else None for name in (before, after)]
    if before == after or None in rows:
        return set()
    same_loss = rows[0].module == rows[1].module
    return {"name", *rows[0].preset, *rows[1].preset, *rows[1].unread, *(() if same_loss else ANY_PRESET)}
