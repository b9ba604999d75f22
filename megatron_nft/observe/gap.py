"""The gap between the log-probs of the engine that sampled and those of the actor: how large, where, and what it looks
like.

A scored TrainBatch comes in; metrics, or the likely cause of a gap, go out. Called by run/gap_alarm.py, and by whoever
compares engine and actor. Shape suffixes: _N all answer tokens of a batch, _A those of an answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from megatron_nft.types import TrainBatch, TrainSequence

MAX_LOG_RATIO = 10.0
"""Cap of log-ratios before exp, as in nft/loss.py."""
BLOCK = 1 << 14
"""Tokens at a time, so that a core's cache holds what is computed of them."""
CERTAIN = 0.02
"""A token less than this away from probability 1, in nats: two distributions that are near each other anywhere are
within about as much here."""
NOISE_SHARE = 0.5
"""A gap at certain tokens this large, of that at all tokens, is in the log-probs and not in the distribution."""
EXPLAINED = 0.9
"""Share of the siblings' gaps that one temperature must explain."""
MIN_PAIRS = 16
"""Pairs of answers from which a temperature, or noise, can be told."""

Cause = Literal["not finite", "noise", "temperature", "cut", "weights"]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a gap looks like."""

    cause: Cause
    words: str


@np.errstate(invalid="ignore")  # of a gap that is no number, neither are these
def logprob_gap(batch: TrainBatch, importance_cap: float = 0.0) -> dict[str, float]:
    """Metrics of engine_logprobs against old_logprobs over a scored batch's answer tokens, in nats.

    With d = actor's - engine's: mean, 99th percentile and maximum of |d|; its mean, which is minus the k1 estimate of
    KL(engine || actor), and the k3 estimate e^d - d - 1; the effective sample sizes (sum w)^2 / (n sum w^2) of tokens'
    and of answers' importance weights; |d| by the quarters of the longest answer.

    With a cap, also the share of tokens at which the importance correction is cut (nft/corrections.py).
    """
    by_answer = [s.old_logprobs_A - s.engine_logprobs_A for s in batch.sequences]
    gaps_N = np.concatenate(by_answer)
    sizes_N = np.abs(gaps_N)
    metrics = {
        "rollout/logprob_gap_mean": float(sizes_N.mean(dtype=np.float64)),
        "rollout/logprob_gap_p99": float(np.quantile(sizes_N, 0.99)),
        "rollout/logprob_gap_max": float(sizes_N.max()),
        "rollout/gap_signed": float(gaps_N.mean(dtype=np.float64)),
        "rollout/gap_kl": sum(_divergence(block_N) for block_N in _blocks(gaps_N)) / len(gaps_N),
        "rollout/gap_ess_tokens": _effective(gaps_N),
        "rollout/gap_ess_answers": _effective(np.array([x.sum(dtype=np.float64) for x in by_answer])),
    }
    bounds = [-(-quarter * max(map(len, by_answer)) // 4) for quarter in range(5)]
    for quarter, (start, end) in enumerate(pairwise(bounds)):
        if sizes := [np.abs(x[start:end]) for x in by_answer if len(x) > start]:
            total = sum(float(size.sum(dtype=np.float64)) for size in sizes)
            metrics[f"rollout/gap_quarter_{quarter + 1}"] = total / max(sum(map(len, sizes)), 1)
    if importance_cap:
        metrics["rollout/importance_capped_fraction"] = float((gaps_N > np.log(importance_cap)).mean())
    return metrics


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """In float64, as many as a core has at hand: a large run's step has 35 million tokens, and its ranks wait."""
    for start in range(0, len(values), BLOCK):
        yield values[start : start + BLOCK].astype(np.float64)


def _divergence(gaps: np.ndarray) -> float:
    """The sum of e^d - d - 1."""
    capped = gaps.clip(max=MAX_LOG_RATIO)
    return float((np.expm1(capped) - capped).sum())


def _effective(log_weights: np.ndarray) -> float:
    """Effective sample size, as a share."""
    largest, total, of_squares = float(log_weights.max()), 0.0, 0.0
    for block in _blocks(log_weights):
        weights = np.exp(block - largest)
        total, of_squares = total + float(weights.sum()), of_squares + float((weights * weights).sum())
    return total**2 / (len(log_weights) * of_squares)


def diagnose(sequences: Sequence[TrainSequence]) -> Diagnosis:
    """What the gap of scored sequences looks like. The first of these that holds:

    not finite: a log-prob is no number, or that of a token that can't be.
    noise: tokens that are all but certain have a gap like all others, and so has one token at one place from answer to
        answer. Two distributions can't differ so: the log-probs are not those of what was sampled from, or are of low
        precision.
    cut: the engine finds every token likelier than the actor does: it has left tokens out (top_p, top_k).
    temperature: see `temperature_of`.
    weights: none of that. The engine's distribution is another one, as of an older or another policy.
    """
    old_N, engine_N = (np.concatenate([getattr(s, name) for s in sequences]) for name in _LOGPROBS)
    broken = {"engine": int((~np.isfinite(engine_N)).sum()), "actor": int((~np.isfinite(old_N)).sum())}
    if any(broken.values()):
        words = " and ".join(f"{number} of the {who}'s" for who, number in broken.items() if number)
        return Diagnosis(cause="not finite", words=f"of {len(old_N)} tokens' log-probs {words} are not finite")
    gaps_N = old_N.astype(np.float64) - engine_N
    whole = _size(gaps_N)
    siblings, twins = _siblings(sequences)
    certain_N = old_N > -CERTAIN
    at_certain = _size(gaps_N[certain_N])
    from_one_place = _size(np.array(twins)) / 2**0.5
    told = [f"tokens that are all but certain differ by {at_certain:.2g} nats"] * (at_certain > NOISE_SHARE * whole)
    if len(twins) >= MIN_PAIRS and from_one_place > NOISE_SHARE * whole:
        told.append(f"the same token at the same place by {from_one_place:.2g} nats from answer to answer")
    if told:
        words = f"{' and '.join(told)}, all by {whole:.2g}: the engine's log-probs are not those of the distribution "
        return Diagnosis(cause="noise", words=words + "that it samples from")
    if gaps_N.mean() < 0 and np.quantile(gaps_N, 0.999) < 1e-3 * whole:
        words = (
            "the engine finds every token likelier than the actor: it samples from a part of the vocabulary (top_p, "
        )
        return Diagnosis(cause="cut", words=words + "top_k)")
    if found := _temperature(siblings):
        return found
    can_tell = certain_N.any() or len(twins) >= MIN_PAIRS
    words = "no cut distribution and no temperature alone" + (", and no noise" if can_tell else "")
    words = f"it is {words}: the engine holds other weights, older ones, say, or computes another model of them"
    if not can_tell:
        words += " (or it is noise: no token is certain, and no two answers share one)"
    return Diagnosis(cause="weights", words=words)


def temperature_of(sequences: Sequence[TrainSequence]) -> Diagnosis | None:
    """Whether the gap is what another temperature does, however small it is, and next to nothing else.

    Between two tokens of the same place it is then proportional to the difference of their log-probs. Answers to one
    prompt have such places, wherever they part.
    """
    return _temperature(_siblings(sequences)[0])


def _temperature(siblings: list[tuple[float, float]]) -> Diagnosis | None:
    if len(siblings) < MIN_PAIRS:
        return None
    of_actor, of_gap = np.array(siblings).T
    slope = float(of_actor @ of_gap / (of_actor @ of_actor))
    explained = 1 - float(((of_gap - slope * of_actor) ** 2).sum() / (of_gap**2).sum()) if of_gap.any() else 0.0
    if not (explained > EXPLAINED and slope < 1):
        return None
    words = f"{explained:.0%} of the gap between tokens of one place is what a temperature {1 / (1 - slope):.3g} "
    return Diagnosis(cause="temperature", words=words + "times the actor's does")


def _size(gaps: np.ndarray) -> float:
    """Root mean square; 0 of none."""
    return float(np.sqrt((gaps.astype(np.float64) ** 2).mean())) if len(gaps) else 0.0


_LOGPROBS = ("old_logprobs_A", "engine_logprobs_A")


def _siblings(sequences: Sequence[TrainSequence]) -> tuple[list[tuple[float, float]], list[float]]:
    """Of pairs of answers to one prompt, at the token in which they part: the differences of the actor's log-probs, and
    of the gaps. Nothing of a place's own, such as the sum by which probabilities are normalised, is in them.

    And of pairs that are one up to some token, the difference of its gaps, where both are of the same policy.
    """
    by_prompt: dict[bytes, list[int]] = {}
    for i, s in enumerate(sequences):
        by_prompt.setdefault(s.token_ids_T[: s.num_prompt_tokens].tobytes(), []).append(i)
    siblings: list[tuple[float, float]] = []
    twins: list[float] = []
    under_way = [(members, 0) for members in by_prompt.values()]
    while under_way:
        members, place = under_way.pop()
        children: dict[int, list[int]] = {}
        for i in members:
            if place < sequences[i].num_answer_tokens:
                token = int(sequences[i].token_ids_T[sequences[i].num_prompt_tokens + place])
                children.setdefault(token, []).append(i)
        of_each = [[[float(getattr(sequences[i], n)[place]) for n in _LOGPROBS] for i in c] for c in children.values()]
        for (old, engine), (other_old, other_engine) in pairwise(of_child[0] for of_child in of_each):
            apart = old - other_old
            siblings.append((apart, apart - (engine - other_engine)))
        for of_child in of_each:
            twins += [(a[0] - a[1]) - (b[0] - b[1]) for a, b in pairwise(of_child)]
        under_way += [(c, place + 1) for c in children.values() if len(c) > 1]
    return siblings, twins
