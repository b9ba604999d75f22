"""Adapters in every layout: the log-probs, the loss, every gradient and the trained adapters of peft in float64.

What is compared, and how, is test_parity.py's; the oracle is peft_oracle.py. See the worst differences with -s.
"""

import json

import pytest

from tests.parallel.covering import at_night
from tests.parallel.layouts import Layout
from tests.parallel.oracle import make_model, make_updates
from tests.parallel.peft_oracle import ALL, ALPHA, RANK, make_adapter, train_adapter
from tests.parallel.ranks import run_ranks
from tests.parallel.test_parity import differences, outcome_of_rank

pytestmark = pytest.mark.parallel
BOUNDS = {"log-probs": 1e-5, "loss": 1e-6, "metrics": 1e-5, "gradients": 1e-5, "weights": 1e-6}

# fmt: off
LAYOUTS = [
    #  tp pp vpp cp dp sp  recompute   microbatch embedding
    Layout(1, 1, 1, 1, 1, 0, "none",      "large",  "tied"),
    Layout(2, 1, 1, 1, 1, 0, "full",      "small",  "untied"),
    Layout(2, 1, 1, 1, 1, 1, "full",      "small",  "tied"),
    Layout(4, 1, 1, 1, 1, 1, "selective", "single", "untied"),
    Layout(1, 2, 1, 1, 1, 0, "full",      "small",  "tied"),
    Layout(1, 2, 2, 1, 1, 0, "none",      "single", "untied"),
    Layout(1, 1, 1, 2, 1, 0, "none",      "large",  "tied"),
    Layout(1, 1, 1, 1, 2, 0, "full",      "small",  "untied", overlap=True),
    Layout(2, 2, 1, 1, 1, 1, "none",      "small",  "tied"),
    Layout(2, 1, 1, 1, 2, 1, "selective", "small",  "untied"),
    Layout(1, 2, 1, 2, 1, 0, "full",      "large",  "untied"),
]
# fmt: on
ON_A_PUSH = [LAYOUTS[number] for number in (1, 2, 5, 7, 8, 10)]


def overrides(adapter, targets=ALL) -> list[str]:
    return [f"lora.rank={RANK}", f"lora.alpha={ALPHA}", f"lora.targets={json.dumps(targets)}",
            f"lora.adapter={json.dumps(str(adapter))}"]  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """By embedding: model, adapter, updates, and what peft makes of them."""
    found = {}
    for embedding in ("tied", "untied"):
        folder = tmp_path_factory.mktemp(embedding)
        model = make_model(folder / "model", tied=embedding == "tied")
        adapter, updates = make_adapter(model, folder / "adapter"), make_updates(model)
        found[embedding] = model, adapter, updates, train_adapter(model, adapter, updates)
    return found


@pytest.mark.parametrize("layout", at_night(LAYOUTS, ON_A_PUSH, "axes that the others have in other company"), ids=str)
def test_parity_with_peft(cases, layout):
    model, adapter, updates, expected = cases[layout.embedding]
    lines = [*layout.overrides, *overrides(adapter), *(["actor.ddp_bucket_size=2000"] if layout.overlap else [])]
    ranks = run_ranks(layout.num_processes, outcome_of_rank, str(model), lines, updates)
    found = differences(ranks, expected)
    print(f"\n  {layout}: " + ", ".join(f"{kind} {size:.1e}" for kind, (size, _) in found.items()))
    assert not {kind: worst for kind, worst in found.items() if not worst[0] <= BOUNDS[kind]}
