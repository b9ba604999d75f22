"""How far each correction's expected gradient is from the exact one, on policies small enough to enumerate.

    python -m benchmarks.corrections.run [--seeds 20]

A policy over 5 tokens has a logit for each token after each beginning; answers have 4 tokens, so there are 625, and
an answer is right by a rule that the policy knows nothing of. The sampler is that policy with a drift: a temperature,
other logits, or older ones. Every answer's gradient is computed by this project's own losses (nft/methods,
nft/corrections.py, nft/centering.py), and averaged over all 625 with the sampler's probabilities: no answer is drawn,
so nothing here is noise. The exact gradient, which NFT and RFT share, is that of the share of right answers.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.centering import centering
from megatron_nft.nft.corrections import correction
from megatron_nft.nft.methods import method_of

VOCABULARY, LENGTH, ANSWERS_A_STEP = 5, 4, 512
ANSWERS = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # [N, T]
NUM_BEGINNINGS = sum(VOCABULARY**t for t in range(LENGTH))
POWERS = [VOCABULARY**t for t in range(LENGTH)]
FIRST = [sum(POWERS[:t]) for t in range(LENGTH)]
BEGINNINGS = torch.stack(
    [
        FIRST[t] + sum(ANSWERS[:, i] * VOCABULARY ** (t - 1 - i) for i in range(t)) + 0 * ANSWERS[:, 0]
        for t in range(LENGTH)
    ],
    1,
)  # [N, T]: which beginning each token stands after
IDS = torch.arange(len(ANSWERS)).repeat_interleave(LENGTH)

ROWS: dict[str, dict] = {
    "none": {},
    "token_truncate 2": {"corrections": {"token_truncate": 2.0}},
    "token_mask [0.5, 2]": {"corrections": {"token_mask": (0.5, 2.0)}},
    "sequence_truncate 2": {"corrections": {"sequence_truncate": 2.0}},
    "sequence_truncate 1000": {"corrections": {"sequence_truncate": 1000.0}},
    "sequence_mask [0.5, 2]": {"corrections": {"sequence_mask": (0.5, 2.0)}},
    "geometric_truncate 2": {"corrections": {"geometric_truncate": 2.0}},
    "geometric_mask [0.9, 1.1]": {"corrections": {"geometric_mask": (0.9, 1.1)}},
    "token_k1 0.2": {"corrections": {"token_k1": 0.2}},
    "token_k3 0.02": {"corrections": {"token_k3": 0.02}},
    "sequence_k1 0.1": {"corrections": {"sequence_k1": 0.1}},
    "sequence_k3 0.02": {"corrections": {"sequence_k3": 0.02}},
    "ratio to the engine": {"old_logprobs": "engine"},
    "centering, all tokens": {"old_logprobs": "engine", "score_centering": True},
    "centering, top 2": {"old_logprobs": "engine", "score_centering": True},
}
TOP = {"centering, top 2": 2}


@dataclass(frozen=True)
class Drift:
    """A sampler, made of the policy's logits."""

    name: str
    sampler: Callable[[Tensor, torch.Generator], Tensor]


def noise(size: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda logits, random: logits + size * torch.randn(logits.shape, generator=random, dtype=torch.float64)


def older(size: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Before a step along the exact gradient that has moved a logit by so much, root mean square."""

    def sampler(logits: Tensor, random: torch.Generator) -> Tensor:
        direction = exact_gradient(logits)
        return logits - size * direction / direction.norm() * logits.numel() ** 0.5

    return sampler


DRIFTS = (
    Drift("rounding: logits + 0.02", noise(0.02)),
    Drift("temperature 0.9", lambda logits, _: logits / 0.9),
    Drift("other weights: logits + 0.3", noise(0.3)),
    Drift("older weights: 0.02 behind", older(0.02)),
    Drift("older weights: 0.1 behind", older(0.1)),
)


def rights() -> Tensor:
    """Float64 [N]: one answer in five."""
    return (ANSWERS @ torch.tensor([1, 2, 3, 4]) % VOCABULARY == 0).double()


def token_logprobs(logits: Tensor) -> Tensor:
    """[N, T]."""
    return logits.log_softmax(1)[BEGINNINGS, ANSWERS]


def spread_out(slopes_NTV: Tensor, logits: Tensor) -> Tensor:
    """Each answer's gradient with respect to all logits, [N, logits], from the loss's slopes at the log-probs of every
    token at its places."""
    scores = -logits.softmax(1)[BEGINNINGS] * slopes_NTV.sum(2, keepdim=True) + slopes_NTV
    gradients = torch.zeros(len(ANSWERS), *logits.shape, dtype=torch.float64)
    rows = torch.arange(len(ANSWERS))[:, None].expand(-1, LENGTH)
    return gradients.index_put((rows, BEGINNINGS), scores, accumulate=True).flatten(1)


def exact_gradient(logits: Tensor) -> Tensor:
    """Of the share of right answers; shaped like the logits."""
    logits = logits.clone().requires_grad_()
    share = (token_logprobs(logits).sum(1).exp() * rights()).sum()
    (gradient,) = torch.autograd.grad(share, logits)
    return gradient


def gradients_of(method_name: str, row: str, logits: Tensor, sampler: Tensor) -> tuple[Tensor, Tensor]:
    """Each answer's gradient of the loss summed over its tokens, [N, logits]; and its share of the denominator."""
    algorithm = AlgorithmConfig(name=method_name, **ROWS[row])
    old, engine = token_logprobs(logits).flatten(), token_logprobs(sampler).flatten()
    rate = float((engine.view(-1, LENGTH).sum(1).exp() * rights()).sum())  # of the answers that there are
    columns = {
        "old_logprobs": engine if algorithm.old_logprobs == "engine" else old,
        "verdict": rights().repeat_interleave(LENGTH),
        "correct_rate": torch.full_like(old, rate),
        "sequence_id": IDS,
    }
    method, places = method_of(algorithm), BEGINNINGS.flatten()
    all_NV = logits.log_softmax(1)[places].clone().requires_grad_()
    sampled = all_NV.gather(1, ANSWERS.flatten()[:, None])[:, 0]
    losses = method.losses(sampled, columns, algorithm)
    kept = torch.ones_like(old)
    if algorithm.score_centering:
        engine_NV = sampler.log_softmax(1)[places]
        top = engine_NV.argsort(1, descending=True)[:, : TOP.get(row, VOCABULARY)]
        losses = losses + centering(all_NV.gather(1, top), engine_NV.gather(1, top), columns, method, algorithm)
    if algorithm.all_corrections:
        weights, left = correction(old, engine, IDS, algorithm.all_corrections)
        losses, kept = losses * weights, left.double()
    (slopes,) = torch.autograd.grad(losses.sum(), all_NV)
    return spread_out(slopes.view(len(ANSWERS), LENGTH, VOCABULARY), logits), kept.view(-1, LENGTH).mean(1)


def measure(method_name: str, row: str, logits: Tensor, sampler: Tensor) -> list[float]:
    """Bias, and what a step of ANSWERS_A_STEP answers deviates by, in lengths of the exact gradient."""
    exact = -exact_gradient(logits).flatten()
    q = token_logprobs(sampler).sum(1).exp()
    gradients, kept = gradients_of(method_name, row, logits, sampler)
    gradients = gradients / (q @ kept)
    mean = q @ gradients
    variance = float(q @ (gradients**2).sum(1) - mean @ mean) / ANSWERS_A_STEP
    bias = float((mean - exact).norm())
    size = float(exact.norm())
    return [bias / size, (bias**2 + variance) ** 0.5 / size]


def table(drift: Drift, seeds: int) -> str:
    found: dict[str, list[list[float]]] = {row: [] for row in ROWS}
    gaps = []
    for seed in range(seeds):
        random = torch.Generator().manual_seed(seed)
        logits = torch.randn(NUM_BEGINNINGS, VOCABULARY, generator=random, dtype=torch.float64)
        sampler = drift.sampler(logits, random)
        q, d = token_logprobs(sampler).sum(1).exp(), token_logprobs(logits) - token_logprobs(sampler)
        gaps.append(float(q @ -d.mean(1)))
        for row in ROWS:
            found[row].append([x for name in ("nft", "rft") for x in measure(name, row, logits, sampler)])
    lines = [f"**{drift.name}** (KL {torch.tensor(gaps).mean():.1e} nats a token)\n"]
    lines += ["| correction | NFT: bias | bias and noise | RFT: bias | bias and noise |", "|" + " --- |" * 5]
    for row, values in found.items():
        whole = torch.tensor(values)
        cells = [f"{x:.1%}" for x in whole.mean(0).tolist()]
        if not whole.isfinite().all():  # for some policy nothing is left
            cells = ["all rejected"] * 4
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="policies and drifts to average over (default: 20)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for drift in DRIFTS:
        print(table(drift, arguments.seeds), flush=True)


if __name__ == "__main__":
    main()
