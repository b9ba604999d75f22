"""Whether a step that is trained again has the recorded numbers; on real ranks: tests/e2e/test_resume.py."""

import math

import pytest

from megatron_nft.observe.metrics import METRICS
from megatron_nft.run.replay import comparison

RECORDED = {"nft/loss": 0.125, "actor/grad_norm": 1.5, "nft/ratio_max": 1.25, "time/step_s": 3.0}


def test_rounding_agrees_and_anything_else_does_not():
    lines, is_same = comparison(RECORDED, {**RECORDED, "nft/loss": 0.125 * (1 + 1e-7)})
    assert is_same and not any("DIFFERS" in line for line in lines)
    for name in ("nft/loss", "actor/grad_norm", "nft/ratio_max"):
        assert name in METRICS
        lines, is_same = comparison(RECORDED, {**RECORDED, name: RECORDED[name] * 1.01})
        assert not is_same and [line.split()[0] for line in lines if "DIFFERS" in line] == [name]


@pytest.mark.parametrize(("before", "now", "same"), [(math.nan, math.nan, True), (0.1, math.nan, False)])
def test_what_is_no_number_is_the_same_only_as_such(before, now, same):
    assert comparison({"nft/loss": before}, {"nft/loss": now})[1] == same
