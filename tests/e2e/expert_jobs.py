"""What test_experts.py has engines do, each function in a process of its own (engine_server.py)."""

import json
from pathlib import Path

from megatron_nft.rollout.api import Sampling, answer_here, requests_of
from megatron_nft.types import Prompt
from tests.e2e.engine_jobs import LONG, make_engine, make_prompts, send

EXPERTS = Sampling(group_size=4, temperature=1.0, max_answer_tokens=40, seed=3, with_experts=True)
FEW_BLOCKS = 9
"""Of 128 tokens, where a hundred would be needed."""


def experts(model, dtype, tp=1):
    """Arrangement -> answers with their experts: the first arrangement in one batch, the others as they say."""
    engine = make_engine(model, dtype, tp, gives_experts=True)
    prompts = make_prompts([5, 17, 110, 126, 260])
    same = Prompt(**vars(prompts[4]) | {"prompt_id": "toy/5", "token_ids_P": prompts[4].token_ids_P[:200]})
    prompts = [*prompts, same]  # its first block is the other's
    found = {"batch": answer_here(engine, prompts, EXPERTS)}
    found["from the cache"] = answer_here(engine, prompts[::-1], EXPERTS)[::-1]
    found["one by one"] = []
    for prompt in prompts:
        assert engine._llm.reset_prefix_cache()
        found["one by one"] += answer_here(engine, [prompt], EXPERTS)
    request, other = requests_of(prompts[:2], EXPERTS, first_id=50)
    engine.advance("rollouts", [request, other], [], 0.0)
    engine.advance("rollouts", [], [request.request_id], 0.0)  # begun, and not wanted any more
    found["beside a dropped one"] = [group for _, group in engine.advance("rollouts", [], [], 60.0)[0]]
    unasked = answer_here(engine, prompts[:1], Sampling(**vars(EXPERTS) | {"with_experts": False}))
    assert unasked[0].rollouts[0].experts_R is None
    found["forgotten"] = engine._llm.collective_rpc("num_captured")[0] if tp == 1 else 0
    engine.shutdown()
    return found


def experts_of_a_small_engine(model, dtype):
    """The same answers where the KV cache has room for few at a time; and how often one was preempted."""
    hf = json.loads((Path(model) / "config.json").read_text())
    block = 128 * 2 * hf["num_hidden_layers"] * hf["num_key_value_heads"] * hf["head_dim"] * 4
    engine = make_engine(model, dtype, gives_experts=True, kv_cache_gib=(FEW_BLOCKS + 0.5) * block / 2**30)
    scheduler = engine._llm.llm_engine.engine_core.engine_core.scheduler
    preempt, count = scheduler._preempt_request, []

    def counted(*arguments, **keywords):
        count.append(1)
        return preempt(*arguments, **keywords)

    scheduler._preempt_request = counted
    groups = answer_here(engine, make_prompts([5, 17, 110, 126, 260]), EXPERTS)
    engine.shutdown()
    return groups, len(count)


def experts_under_way(old, new):
    """rollout.on_sync -> answers that were under way when the weights became `new`; and those of either weights."""
    engine, prompts, found = make_engine(old, "float32", gives_experts=True), make_prompts(LONG), {}
    found["old"] = answer_here(engine, prompts, EXPERTS)
    for on_sync in ("keep", "recompute", "restart"):
        engine._on_sync, finished = on_sync, []
        for requests in (requests_of(prompts, EXPERTS), *[[]] * 11):  # a decode step each
            finished += engine.advance("rollouts", requests, [], 0.0)[0]
        assert not finished
        send(engine, new, version=3)
        finished = engine.advance("rollouts", [], [], 60.0)[0]
        found[on_sync] = [group for _, group in sorted(finished, key=lambda pair: pair[0])]
        send(engine, old, version=0)
    send(engine, new, version=3)
    found["new"] = answer_here(engine, prompts, EXPERTS)
    engine.shutdown()
    return found
