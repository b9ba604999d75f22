"""Lengths, microbatches, and an engine's round."""

import pytest

from megatron_nft.plan.engine import Engine, generate
from megatron_nft.plan.hardware import load_machine
from megatron_nft.plan.workload import length_quantiles, microbatches_per_sequence


@pytest.mark.parametrize("mean", [100, 1500, 3900, 4000])
def test_lengths_have_the_mean_and_the_cut(mean):
    lengths = length_quantiles(mean, 0.8, 4000)
    assert sum(lengths) / len(lengths) == pytest.approx(min(mean, 3996), rel=1e-3)
    assert max(lengths) <= 4000 and list(lengths) == sorted(lengths)


def test_long_sequences_leave_gaps_in_microbatches():
    assert microbatches_per_sequence((900.0,) * 100, 100, 4000) == 0.25
    assert microbatches_per_sequence((1901.0,) * 100, 100, 4000) == 1.0  # two of 2001 are too many
    assert microbatches_per_sequence((900.0, 2900.0), 100, 4000) == 0.5


ENGINE = Engine(
    weight_bytes=16e9, read_bytes=16e9, kv_bytes_per_token=1e5, kv_bytes=40e9, flops_per_token=16e9,
    hidden_bytes=8192, logits_bytes=4 * 128_000, layers=32, tp=1, memory_bytes=60e9,
)  # fmt: skip


def seconds(answers, places, lengths, prompts=1.0):
    return generate(
        ENGINE, load_machine("H100"), answers=answers, prompts=prompts, prompt_tokens=100.0, lengths=lengths,
        places=places,
    )  # fmt: skip


def test_one_answer_reads_the_weights_once_a_token():
    spent = seconds(1, 1, (1000.0,))
    assert spent["weights"] == pytest.approx(1000 * 16e9 / (3.35e12 * 0.8))
    assert spent["keys and values"] == pytest.approx(1000 * 600 * 1e5 / (3.35e12 * 0.8))  # 100 to 1100 tokens
    assert spent["prefill"] == pytest.approx(100 * 16e9 / (989e12 * 0.55))


def test_answers_side_by_side_share_the_reading_of_the_weights():
    assert seconds(8, 8, (1000.0,))["weights"] == pytest.approx(seconds(1, 1, (1000.0,))["weights"])
    assert seconds(8, 8, (1000.0,))["keys and values"] == pytest.approx(8 * seconds(1, 1, (1000.0,))["keys and values"])


def test_few_places_make_rounds():
    assert seconds(8, 2, (1000.0,))["weights"] == pytest.approx(4 * seconds(1, 1, (1000.0,))["weights"])
    # The next answer starts when one ends: 1 long one beside 3 short ones, one after the other.
    mixed = seconds(4, 2, (100.0, 100.0, 100.0, 300.0))
    assert mixed["weights"] == pytest.approx(300 * 16e9 / (3.35e12 * 0.8), rel=0.4)


def test_large_batches_are_bound_by_products():
    assert seconds(1, 1, (100.0,))["products"] == 0
    assert seconds(1024, 1024, (100.0,))["products"] > seconds(1024, 1024, (100.0,))["weights"]
