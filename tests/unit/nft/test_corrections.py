"""Corrections of the gap from engine to actor: by hand, their limits, and whatever is put in."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_nft.config import AlgorithmConfig
from megatron_nft.config.corrections import CORRECTIONS
from megatron_nft.nft.corrections import correction, cut_tokens

LOG_RATIOS = [0.2, -0.5, 1.2, 0.1, -0.1]
"""Of three tokens of one answer and two of another."""
IDS = torch.tensor([0, 0, 0, 1, 1])
SUM, MEAN = math.exp(0.9), math.exp(0.3)


def made(name, bounds, log_ratios=LOG_RATIOS, ids=IDS):
    engine = torch.full((len(log_ratios),), -2.0, dtype=torch.float64)  # equal: a gap is rounded alike in any place
    weights, kept = correction(engine + torch.tensor(log_ratios).double(), engine, ids, {name: bounds})
    return weights.tolist(), kept.tolist()


@pytest.mark.parametrize(
    ("name", "bounds", "weights"),
    [
        ("token_truncate", 2.0, [math.exp(0.2), math.exp(-0.5), 2.0, math.exp(0.1), math.exp(-0.1)]),
        ("token_mask", (0.7, 2.0), [math.exp(0.2), 0.0, 0.0, math.exp(0.1), math.exp(-0.1)]),
        ("sequence_truncate", 2.0, [2.0] * 3 + [1.0] * 2),
        ("sequence_truncate", 3.0, [SUM] * 3 + [1.0] * 2),
        ("sequence_mask", (0.5, 2.0), [0.0] * 3 + [1.0] * 2),
        ("geometric_truncate", 1.2, [1.2] * 3 + [1.0] * 2),
        ("geometric_mask", (0.9, 1.5), [MEAN] * 3 + [1.0] * 2),
        ("geometric_mask", (0.9, 1.1), [0.0] * 3 + [1.0] * 2),
    ],
)
def test_weights_by_hand(name, bounds, weights):
    """Nothing of what they make 0 leaves the denominator."""
    found, kept = made(name, bounds)
    assert found == pytest.approx(weights, abs=1e-6) and all(kept)


@pytest.mark.parametrize(
    ("name", "bound", "kept"),
    [
        ("token_k1", 0.45, [True, False, False, True, True]),
        ("token_k3", 0.2, [True, True, False, True, True]),  # 0.0214, 0.1065, 1.1201, 0.0052, 0.0048
        ("sequence_k1", 0.25, [False] * 3 + [True] * 2),  # |0.3|, |0|
        ("sequence_k1", 0.35, [True] * 5),
        ("sequence_k3", 0.41, [False] * 3 + [True] * 2),  # 0.4160, 0.0050
        ("sequence_k3", 0.42, [True] * 5),
    ],
)
def test_rejections_by_hand(name, bound, kept):
    """What stays weighs 1, and what goes leaves the denominator."""
    assert made(name, bound) == ([float(k) for k in kept], kept)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_limits(name):
    """No gap: nothing changes; bounds beyond any gap: the ratio itself, and nothing is rejected."""
    row = CORRECTIONS[name]
    assert made(name, (0.99, 1.01) if row.kind == "mask" else 1.0 if row.kind == "truncate" else 1e-9, [0.0] * 5) == (
        [1.0] * 5, [True] * 5,
    )  # fmt: skip
    wide, kept = made(name, (0.0, 1e9) if row.kind == "mask" else 1e9)
    ratios = {
        "token": [math.exp(x) for x in LOG_RATIOS],
        "sequence": [SUM] * 3 + [1.0] * 2,
        "geometric": [MEAN] * 3 + [1.0] * 2,
    }[row.of]
    assert wide == pytest.approx([1.0] * 5 if row.rejects else ratios, rel=1e-6) and all(kept)


@pytest.mark.parametrize("name", CORRECTIONS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_extremes_are_finite_and_an_answer_has_no_neighbours(name, data):
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    gap = st.one_of(st.floats(-3, 3), st.sampled_from([-1e4, 1e4, 0.0]))
    gaps = [data.draw(st.lists(gap, min_size=n, max_size=n)) for n in lengths]
    bounds = (0.5, 2.0) if CORRECTIONS[name].kind == "mask" else 0.5
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    weights, kept = made(name, bounds, [x for each in gaps for x in each], ids)
    assert all(math.isfinite(w) and w >= 0 for w in weights)
    alone = [made(name, bounds, each, torch.zeros(len(each), dtype=torch.int64)) for each in gaps]
    assert weights == pytest.approx([w for each, _ in alone for w in each], rel=1e-9)
    assert kept == [k for _, each in alone for k in each]


def test_they_are_composed_and_counted():
    engine = torch.full((5,), -2.0)
    given = (engine + torch.tensor(LOG_RATIOS), engine, IDS)
    both = {"token_truncate": 1.15, "sequence_k1": 0.25}
    weights, kept = correction(*given, both)
    assert weights.tolist() == pytest.approx([0, 0, 0, math.exp(0.1), math.exp(-0.1)]) and kept.sum() == 2
    assert {name: count.item() for name, count in cut_tokens(*given, both).items()} == {
        "truncated": 2, "masked": 0, "rejected": 3,
    }  # fmt: skip
    counted = cut_tokens(*given, {"token_mask": (0.7, 2.0)})
    assert (counted["masked"], counted["rejected"]) == (2, 0)


@pytest.mark.parametrize(
    "corrections",
    [
        {"token_truncate": 2.0, "token_k1": 0.3},
        {"token_mask": (0.5, 2.0), "token_k3": 0.05},
        {"sequence_truncate": 2.0, "sequence_k3": 0.05},
        {"geometric_truncate": 2.0, "sequence_k1": 0.3},
    ],
)
@pytest.mark.parametrize("broken", [math.nan, -math.inf, math.inf])
def test_what_is_rejected_weighs_nothing_even_if_it_is_no_number(corrections, broken):
    engine = torch.full((5,), -2.0, dtype=torch.float64)
    old = engine + torch.tensor([0.2, broken, 0.1, 0.1, -0.1], dtype=torch.float64)
    weights, kept = correction(old, engine, IDS, corrections)
    assert not kept[1] and weights[1] == 0 and weights.isfinite().all()
    assert kept[3:].all() and (weights[3:] > 0).all(), "the other answer's"


def test_no_gradient_goes_through_a_weight():
    old = torch.tensor(LOG_RATIOS, requires_grad=True)
    for name, row in CORRECTIONS.items():
        weights, _ = correction(old, torch.zeros(5), IDS, {name: (0.1, 5.0) if row.kind == "mask" else 2.0})
        assert not weights.requires_grad


def test_the_cap_by_its_older_name():
    algorithm = AlgorithmConfig(importance_cap=2.0, corrections={"token_k3": 0.1})
    assert algorithm.all_corrections == {"token_truncate": 2.0, "token_k3": 0.1} and algorithm.rejects
    assert not AlgorithmConfig(importance_cap=2.0).rejects and AlgorithmConfig().all_corrections == {}
