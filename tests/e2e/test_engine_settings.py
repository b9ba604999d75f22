"""rollout.vllm on a real engine: what vLLM refuses before a start, quantized weights after updates.

The engines' part is in engine_jobs.py.
"""

import numpy as np
import pytest

from megatron_nft.config.vllm_settings import OWN, OWN_ON_A_CPU, UNFIT
from tests.e2e.driver import RECIPE
from tests.e2e.test_engine import assert_equal, make_model, result

pytestmark = pytest.mark.e2e
BF16 = "rollout.dtype=bfloat16"
REFUSED = [  # the last as long as no package of the environment brings numba
    (['{quantisation = "fp8"}'], "quantisation is no argument of this vLLM's engines; did you mean quantization?"),
    (["{enable_log_requests = true}"], "did you mean enable_mm_embeds?"),  # enable_lora, the nearest, is refused, too
    (['{block_size = "many"}'], "vLLM refuses it: block_size: Input should be a valid integer"),
    (['{quantization = "fp8_per_channel"}'], "torch.float32 is not supported for quantization method fp8_per_channel"),
    (['{max_num_batched_tokens = 100}'], "max_num_batched_tokens (100) is smaller than max_model_len (192)"),
    (['{speculative_config = {method = "ngram", num_speculative_tokens = 3}}'], "No module named 'numba'"),
]  # fmt: skip
TAKEN = [
    ['{quantization = "fp8_per_channel"}', BF16],
    ["{block_size = 64}"],
    ["{enforce_eager = false}", "cluster.device=cuda"],
]
QUANTIZATION = "fp8_per_channel"


@pytest.fixture(scope="module")
def results(tmp_path_factory, engine_server):
    folder = tmp_path_factory.mktemp("models")
    old, new = (make_model(folder / name, seed, "tied", "bfloat16") for name, seed in (("old", 1), ("new", 2)))
    settings = [given for given, _ in REFUSED] + TAKEN
    return engine_server.run(
        {
            "asked": ("asked_of_vllm", {"recipe": RECIPE, "settings": settings}),
            "quantized": ("quantized", {"old": old, "new": new, "quantization": QUANTIZATION}),
        }
    )


def test_vllm_refuses_before_anything_starts(results):
    words, _, _ = result(results, "asked")
    for (given, says), said in zip(REFUSED, words, strict=False):
        assert said is not None and said.startswith("rollout.vllm") and "\n" not in said, given
        assert says in said
    assert words[len(REFUSED) :] == [None] * len(TAKEN)


def test_what_the_program_sets_can_not_be_given_and_is_vllms(results):
    """But for the tokens of a step and of a block, which are defaults."""
    _, names, ours = result(results, "asked")
    assert (
        ours - {"max_num_batched_tokens", "block_size"}
        <= OWN.keys() | OWN_ON_A_CPU.keys()
        <= names | {"worker_extension_cls"}
    )
    assert UNFIT.keys() <= names and not UNFIT.keys() & ours


def test_quantized_weights_after_updates_are_those_of_a_fresh_engine_bit_for_bit(results):
    found = result(results, "quantized")
    (before, _), (updated, answers), (fresh, expected) = (found[name] for name in ("before", "updated", "fresh"))
    assert updated == fresh
    of_fp8 = [name for name, (dtype, _) in fresh.items() if dtype == "torch.float8_e4m3fn"]
    assert len(of_fp8) == 8, "four linears in each of two layers"
    assert all(before[name] != fresh[name] for name in of_fp8)
    assert_equal(answers, expected)
    logprobs_A = np.concatenate([r.engine_logprobs_A for group in answers for r in group.rollouts])
    assert np.isfinite(logprobs_A).all() and (logprobs_A <= 0).all()
