"""What tests/parallel/test_algorithms.py trains with: every method and correction, and what answers need for them."""

from dataclasses import replace

import numpy as np

from megatron_nft.types import TrainSequence
from tests.parallel.oracle import VOCAB_SIZE

BOUNDS = {
    **{f"{of}_truncate": 1.05 for of in ("token", "sequence")},
    **{f"{of}_mask": (0.9, 1.2) for of in ("token", "sequence")},
    **{"geometric_truncate": 1.002, "geometric_mask": (0.998, 1.02)},
    **{"token_k1": 0.15, "token_k3": 0.02, "sequence_k1": 0.01, "sequence_k3": 0.022},
}
"""Of the corrections: each cuts some of these answers, and not all."""

ALGORITHMS = {
    "nft, sequences": {"reduction": "sequences"},
    "nft, constant": {"reduction": "constant", "reduction_constant": 30.0},
    "nft 0.5, importance": {"neg_weight": 0.5, "importance_cap": 1.05},
    "nft, normalize 2, clamp 0.1": {"normalize": 2, "clamp_negative": 0.1},
    "rft": {"name": "rft"},
    "grpo": {"name": "grpo"},
    "dr_grpo": {"name": "dr_grpo"},
    "dapo": {"name": "dapo"},
    "dapo, kl": {"name": "dapo", "kl_weight": 0.1},
    "published": {"reduction": "published", "published_ranks": 2},
    "rft_script, published": {"name": "rft_script", "reduction": "published", "published_ranks": 1},
    "nft, a ratio per answer": {"ratio_type": "sequence"},
    "nft, normalize 3, half of right answers": {"normalize": 3, "pos_weight": 0.5},
    "grpo, dual clip": {"name": "grpo", "dual_clip": 1.3},
    **{name: {"name": name} for name in ("gspo", "cispo", "maxrl", "topr", "psr", "nsr", "w_reinforce", "asymre")},
    **{f"nft, {name}": {"corrections": {name: bounds}} for name, bounds in BOUNDS.items()},
    **{
        f"nft, sequences, {n}": {"corrections": {n: BOUNDS[n]}, "reduction": "sequences"}
        for n in ("token_k1", "sequence_k3")
    },
    "grpo, rejected and capped": {"name": "grpo", "corrections": {"token_truncate": 1.1, "sequence_k1": 0.01}},
    "dr_grpo, rejected": {"name": "dr_grpo", "corrections": {"sequence_k1": 0.01}},
    **{
        f"{n}, centred": {"name": n, "score_centering": True, "old_logprobs": "engine"}
        for n in ("nft", "dapo", "asymre")
    },
}


TOP = 4


def with_top(sequence: TrainSequence) -> TrainSequence:
    """With an engine's likeliest tokens, here any, and an advantage."""
    numbers = np.random.default_rng(sequence.num_tokens)
    shape = (sequence.num_answer_tokens, TOP)
    ids = np.stack([numbers.permutation(VOCAB_SIZE)[:TOP] for _ in range(shape[0])]).astype(np.int32)
    likely = np.broadcast_to(np.log([0.4, 0.2, 0.1, 0.05]), shape) - 0.1 * numbers.random(shape)
    advantage = 2 * (sequence.verdict - sequence.correct_rate)  # a stored batch of NFT has none
    columns = {"top_ids": ids, "top_logprobs": likely.astype(np.float32)}
    return replace(sequence, advantage=advantage, columns=columns)
