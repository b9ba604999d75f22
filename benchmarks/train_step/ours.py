"""megatron_nft's actor: one rank's Worker, as cluster/ranks.py runs it, without Ray."""

from collections.abc import Callable, Sequence

from benchmarks.train_step.case import GRAD_CLIP, LEARNING_RATE, WEIGHT_DECAY
from megatron_nft.types import TrainSequence


def build(
    model_folder: str,
    sequences: Sequence[TrainSequence],
    tokens_per_microbatch: int,
    *,
    tp: int = 1,
    pp: int = 1,
    rank: int = 0,
    master: str,
) -> Callable[[], dict | None]:
    """A function that makes one update on the sequences; its loss and gradient norm, from the rank that speaks."""
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import Config
    from megatron_nft.data.packing import pack

    recipe = {
        "model": {"path": model_folder},
        "data": {"train": ["none"]},
        "rollout": {"dtype": "float32", "max_answer_tokens": 128},
        "algorithm": {"name": "dapo"},
        "actor": {"tp": tp, "pp": pp, "precision": "fp32", "tokens_per_microbatch": tokens_per_microbatch},
        "optimizer": {
            "learning_rate": LEARNING_RATE, "warmup_updates": 0, "weight_decay": WEIGHT_DECAY, "grad_clip": GRAD_CLIP,
        },
        "cluster": {"device": "cpu"},
    }  # fmt: skip
    config = Config.model_validate(recipe)
    worker = Worker(config, rank=rank, master=master)
    batch = pack(
        [sequences],
        num_updates=1,
        dp=1,
        tokens_per_microbatch=tokens_per_microbatch,
        attention_parity_tokens=worker.hf.attention_parity_tokens,
    )
    microbatches = batch.updates[0][0]

    def step() -> dict | None:
        metrics = worker.train_step([microbatches])
        return metrics and {"loss": metrics["nft/loss"], "grad_norm": metrics["actor/grad_norm"]}

    return step
