"""An update that finds its old log-probs in its own forward pass, beside the same update scored before.

A rank's worker and microbatches come in, the largest differences go out. Called on every rank of a layout at once, by
test_parity.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
import torch

from megatron_nft.types import MicroBatch


def changed_by_scoring_apart(worker: Any, microbatches: Sequence[MicroBatch]) -> dict[str, float]:
    """By what scoring apart would change log-probs, gradients and metrics; and how far ratios are from 1, which only
    the ranks of the last stage know. Leaves the weights as they are."""
    pipeline = worker.pipeline
    apart = pipeline.score(microbatches)
    metrics, _, own = pipeline.forward_backward(with_old_logprobs(microbatches, repeat(None)))
    gradients = _gradients(worker)
    each = (x for logprobs_A, m in zip(apart, microbatches, strict=False) for x in _split(logprobs_A, m))
    scored = with_old_logprobs(microbatches, each if apart else repeat(None))
    expected, _, _ = pipeline.forward_backward(scored)
    changed = {f"{name} apart": abs(value - expected[name]) for name, value in metrics.items()}
    changed |= {name: abs(metrics[f"nft/{name}"] - 1) for name in ("ratio_mean", "ratio_max") if metrics}
    changed["gradients"] = max(map(_distance, gradients, _gradients(worker)))
    return changed | {f"log-probs {i}": _distance(a, b) for i, (a, b) in enumerate(zip(apart, own, strict=True))}


def with_old_logprobs(microbatches: Sequence[MicroBatch], each: Iterator[np.ndarray | None]) -> list[MicroBatch]:
    """The microbatches with these as their sequences' old log-probs, in order."""
    return [
        replace(m, sequences=tuple(replace(s, old_logprobs_A=next(each)) for s in m.sequences)) for m in microbatches
    ]


def _split(logprobs_A: torch.Tensor, microbatch: MicroBatch) -> list[np.ndarray]:
    lengths = [s.num_answer_tokens for s in microbatch.sequences]
    return [x.numpy() for x in logprobs_A.split(lengths)] if lengths else []


def _gradients(worker: Any) -> list[torch.Tensor]:
    return [buffer.grad_data.clone() for chunk in worker.model for buffer in chunk.buffers]


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())
