"""How a published step packs: padding, balance over ranks, microbatches, time; beside other ways. Prints Markdown.

    python -m benchmarks.packing.run [--seeds 10]

A step: 512 groups of 16 answers in 16 updates of 512 sequences. Lengths in tokens: of a prompt lognormal (median 200,
deviation 0.6), cut to 50-2048; of an answer lognormal, median 3000, with a deviation of 0.7 between groups and 0.7
within one, cut at 14,336: 1 answer in 20.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.packing.peers import Update, arrival, decreasing, differencing
from megatron_nft.data.packing import pack
from megatron_nft.types import TrainSequence

NUM_UPDATES, GROUPS_PER_UPDATE, GROUP_SIZE = 16, 32, 16
MAX_ANSWER_TOKENS, PROMPT_RANGE = 14336, (50, 2048)
PARITY_TOKENS = 233_046_016 / 3584
"""HFConfig.attention_parity_tokens of Qwen2.5-7B: about 65,000."""
MULTIPLE = 128
"""A microbatch's tokens are padded to tp 8 x 16: sequence parallelism beside FP8."""
STAND_IN_TOKENS = 2
"""What an empty microbatch computes (actor/packed.py)."""
DPS, BUDGETS = (4, 16, 64), (16384, 32768)


def draw_step(seed: int) -> list[list[int]]:
    """Tokens of each sequence of each update, in arrival order."""
    draws = np.random.default_rng(seed)
    groups = NUM_UPDATES * GROUPS_PER_UPDATE
    prompts = np.exp(draws.normal(math.log(200), 0.6, (groups, 1))).astype(int).clip(*PROMPT_RANGE)
    logs = math.log(3000) + draws.normal(0, 0.7, (groups, 1)) + draws.normal(0, 0.7, (groups, GROUP_SIZE))
    answers = np.exp(logs).astype(int).clip(1, MAX_ANSWER_TOKENS)
    return (prompts + answers).reshape(NUM_UPDATES, -1).tolist()


def ours(lengths: list[int], dp: int, budget: int) -> tuple[Update, float]:
    """data/packing.py, and its seconds: making sequences of the lengths is not its work."""
    token, logprob = np.zeros(max(lengths), np.int32), np.zeros(1, np.float32)
    sequences = [
        TrainSequence(
            token_ids_T=token[:n], num_prompt_tokens=n - 1, verdict=1.0, correct_rate=0.5, engine_logprobs_A=logprob
        )
        for n in lengths
    ]
    start = time.process_time()
    batch = pack([sequences], num_updates=1, dp=dp, tokens_per_microbatch=budget, attention_parity_tokens=PARITY_TOKENS)
    seconds = time.process_time() - start
    return [[[s.num_tokens for s in m.sequences] for m in rank] for rank in batch.updates[0]], seconds


def timed(method: Callable[[list[int], int, int], Update]) -> Callable[[list[int], int, int], tuple[Update, float]]:
    """The method, with its seconds."""

    def run(lengths: list[int], dp: int, budget: int) -> tuple[Update, float]:
        start = time.process_time()
        return method(lengths, dp, budget), time.process_time() - start

    return run


METHODS = {
    "**megatron_nft**": ours,
    "first fit, arrival order": timed(arrival),
    "first fit decreasing": timed(decreasing),
    "Karmarkar-Karp": timed(partial(differencing, equal_size=False)),
    "Karmarkar-Karp, equal counts": timed(partial(differencing, equal_size=True)),
}


def measure(update: Update, budget: int) -> dict[str, float]:
    """All that the table needs of one update, but the seconds."""
    tokens, squares = (np.array([[sum(n**p for n in m) for m in rank] for rank in update], float) for p in (1, 2))
    costs = tokens + squares / PARITY_TOKENS
    fed = np.ceil(np.maximum(tokens, STAND_IN_TOKENS) / MULTIPLE) * MULTIPLE
    heaviest_over_mean = {
        name: table.sum(1).max() / table.sum(1).mean()
        for name, table in (("tokens", tokens), ("attention", squares), ("cost", costs))
    }
    by_weight = np.sort(costs, 1)[:, ::-1]  # a peer's microbatches come in any order
    return heaviest_over_mean | {
        "padding": 1 - tokens.sum() / fed.sum(),
        "unfilled": 1 - tokens.sum() / (tokens.size * tokens.max()),
        "microbatch": (by_weight[:, 0] / costs.mean(1)).mean(),
        "waited": by_weight.max(0).sum() / costs.sum(1).mean(),
        "microbatches": tokens.shape[1],
        "over": sum(len(m) > 1 and sum(m) > budget for rank in update for m in rank) / tokens.size,
    }


def padded_rows(updates: list[list[int]], rows: int) -> tuple[float, float]:
    """Share of padding in a [rows, longest] layout: in arrival order, and sorted by length."""
    shares = []
    for order in (lambda lengths: lengths, sorted):
        fed = 0
        for lengths in map(order, updates):
            fed += sum(rows * max(lengths[i : i + rows]) for i in range(0, len(lengths), rows))
        shares.append(1 - sum(map(sum, updates)) / fed)
    return shares[0], shares[1]


def table(seeds: range, dp: int, budget: int) -> list[str]:
    """Rows of one data-parallel size and budget: medians over all updates of all steps, and the worst of them."""
    lines = []
    for name, method in METHODS.items():
        updates, seconds = [], []
        for seed in seeds:
            packed = [method(lengths, dp, budget) for lengths in draw_step(seed)]
            updates += [measure(update, budget) for update, _ in packed]
            seconds.append(sum(spent for _, spent in packed))
        values = {key: np.array([u[key] for u in updates]) for key in updates[0]}
        cells = [f"{100 * np.median(x):.2f}% ({100 * x.max():.2f})" for x in map(values.get, ("padding", "unfilled"))]
        ratios = ("tokens", "attention", "cost", "microbatch", "waited")
        cells += [f"{np.median(x):.3f} ({x.max():.3f})" for x in map(values.get, ratios)]
        cells += [f"{values['microbatches'].mean():.1f}", f"{100 * values['over'].mean():.1f}%"]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{np.median(seconds):.2f}"]) + " |")
    return lines


def longest_share(seeds: range, dp: int) -> str:
    """Where one sequence is a rank's whole share of attention, no split is even in tokens and in attention."""
    shares = [dp * max(n) ** 2 / sum(x * x for x in n) for seed in seeds for n in draw_step(seed)]
    return f"the longest sequence is {np.median(shares):.2f} of a rank's share of attention, at most {max(shares):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="steps to draw")
    seeds = range(parser.parse_args().seeds)
    every = [n for seed in seeds for update in draw_step(seed) for n in update]
    print(
        f"{len(every)} sequences: mean {np.mean(every):.0f} tokens, median {np.median(every):.0f}, longest {max(every)}"
    )
    rows = {count: np.median([padded_rows(draw_step(seed), count) for seed in seeds], axis=0) for count in (4, 8, 512)}
    for count, (arriving, sorted_rows) in rows.items():
        print(f"[{count}, longest] rows: {arriving:.1%} padding in arrival order, {sorted_rows:.1%} sorted by length")
    columns = (
        "| | padding | unfilled | rank: tokens | rank: attention | rank: cost | microbatch: cost | waited | "
        "microbatches | over budget | s a step |"
    )
    for dp in DPS:
        print(f"\n**dp {dp}** ({longest_share(seeds, dp)})")
        for budget in BUDGETS:
            print(f"\nBudget {budget} tokens\n\n{columns}\n|" + " --- |" * (columns.count("|") - 1))
            print("\n".join(table(seeds, dp, budget)), flush=True)


if __name__ == "__main__":
    main()
