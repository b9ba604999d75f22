"""A running engine of a mixture answers as a fresh one after every sync, bit by bit, whatever happens to the buckets.

Five updates to one model and back, in buckets of one tensor that are overwritten with 0xFF as soon as the engine has
them: of a layer's experts all but the last wait for the others, as views into such buckets. Where an expert's part in a
worker is no multiple of 32, vLLM's CPU kernel pads it.
"""

import pytest

from tests.parallel.families import make_folder

pytestmark = pytest.mark.e2e
PADDED = {"moe_intermediate_size": 48}
CASES = [
    ("qwen3_moe", "float32", 1, PADDED),
    ("qwen2_moe", "bfloat16", 1, {}),
    *(
        pytest.param(*case, marks=pytest.mark.night("two workers, 20 s; and a third family"))
        for case in (
            ("qwen3_moe", "float32", 2, {}),
            ("qwen2_moe", "float32", 2, {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 40}),
            ("qwen3_moe", "bfloat16", 2, {}),
            ("mixtral", "float32", 1, {"intermediate_size": 72}),
        )
    ),
]


def content(groups):
    return [(r.token_ids_A.tolist(), r.engine_logprobs_A.tolist()) for group in groups for r in group.rollouts]


@pytest.mark.parametrize(("family", "dtype", "tp", "sizes"), CASES)
def test_after_each_of_five_syncs_an_engine_equals_a_fresh_one(engine_server, family, dtype, tp, sizes, tmp_path):
    old, new = (make_folder(family, dtype, seed, tmp_path / str(seed), **sizes) for seed in range(2))
    model = {"dtype": dtype, "tp": tp}
    results = engine_server.run({
        "synced": ("there_and_back", {"old": old, "new": new, "rounds": 5, **model}),
        "new": ("fresh", {"model": new, **model}),
    })  # fmt: skip
    assert not [words for words in results.values() if isinstance(words, str)], results
    first, *after = map(content, results["synced"])
    assert after[0::2] == [content(results["new"])] * 3
    assert after[1::2] == [first] * 2 and first != after[0]
