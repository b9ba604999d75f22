"""rollout.vllm on a real engine: what vLLM refuses before a start, quantized weights after updates.

The engines' part is in engine_jobs.py.
"""

import numpy as np
import pytest

from megatron_nft.config import RecipeError, load_config
from megatron_nft.config.vllm_settings import OWN, OWN_ON_A_CPU, UNFIT, UNFIT_ON_A_CPU
from megatron_nft.rollout.vllm.arguments import check_arguments
from tests.e2e.driver import RECIPE
from tests.e2e.test_engine import assert_equal, make_model, result

pytestmark = pytest.mark.e2e
BF16 = "rollout.dtype=bfloat16"
CUDA = "cluster.device=cuda"  # whose values are looked at where there is a GPU, and whose types everywhere
DRAFT = '{speculative_config = {method = "draft_model", model = "tests/assets/quickstart/model", %s}}'
REFUSED = [
    (['{quantisation = "fp8"}'], "quantisation is no argument of this vLLM's engines; did you mean quantization?"),
    (["{enable_log_requests = true}"], "did you mean enable_mm_embeds?"),  # enable_lora, the nearest, is refused, too
    (['{block_size = "many"}'], "vLLM refuses it: block_size: Input should be a valid integer"),
    (['{quantization = "fp8_per_channel"}'], "torch.float32 is not supported for quantization method fp8_per_channel"),
    (['{max_num_batched_tokens = 100}'], "max_num_batched_tokens (100) is smaller than max_model_len (192)"),
    (["{block_size = 33}"], "block_size: 33 tokens; vLLM's CPU attention takes multiples of 32"),
    (["{block_size = 0}"], "block_size: 0 tokens; give 1 or more, or leave it out"),
    (["{block_size = -32}", CUDA], "block_size: -32 tokens; give 1 or more, or leave it out"),
    (["{num_gpu_blocks_override = 6}"], "6 blocks of 32 tokens; a sequence may have 192, so give 7 or more, or leave"),
    (["{num_gpu_blocks_override = -1, block_size = 64}"], "-1 blocks of 64 tokens; a sequence may have 192, so give 4"),
    (["{num_gpu_blocks_override = 0}", CUDA], "0 blocks; a sequence may have 192, so give 2 or more"),
    (["{disable_cascade_attn = 3}"], "disable_cascade_attn: Input should be a valid boolean"),  # not even read
    (['{block_size = "many"}', CUDA], "block_size: Input should be a valid integer"),
    (["{block_size = true}", CUDA], "block_size: Input should be a valid integer"),
    (['{max_num_batched_tokens = "x"}', CUDA], "max_num_batched_tokens: Input should be a valid integer"),
    (["{kv_cache_dtype = 3}", CUDA], "kv_cache_dtype: Input should be 'auto', "),
    (['{quantization = "fp9"}', CUDA], "quantization: Unknown quantization method: fp9. Must be one of "),
    (['{enable_expert_parallel = "maybe"}', CUDA], "enable_expert_parallel: Input should be a valid boolean"),
    (['{enforce_eager = "yes"}', CUDA], "enforce_eager: Input should be a valid boolean"),
    (['{attention_backend = "fast"}', CUDA], "attention_backend: Input should be one of FLASH_ATTN, "),
    (['{optimization_level = "O2"}', CUDA], "optimization_level: Input should be 0, 1, 2 or 3"),
    (['{compilation_config = "x"}', CUDA], "compilation_config: Input should be a table of vLLM's CompilationConfig"),
    (['{compilation_config = {modee = 3}}', CUDA], "compilation_config.modee: Unexpected keyword argument"),
    (['{kv_events_config = {publisher = 3}}', CUDA], "kv_events_config.publisher: Input should be "),
    (["{speculative_config = 3}", CUDA], "speculative_config: Input should be an object"),
    (['{speculative_config = {method = "ngrm"}}', CUDA], "speculative_config.method: Input should be 'ngram', "),
    (['{speculative_config = {method = "ngram", num-speculative-tokens = 0}}', CUDA], "Input should be greater than 0"),
    (['{speculative_config = {method = "ngram", tokens = 3}}', CUDA], "config.tokens: there is no such key"),
    ([DRAFT % "num_speculative_tokens = 3", CUDA], "'draft_model' guesses by a model of its own"),
    ([DRAFT % "num_speculative_tokens = 3", CUDA, "lora.rank=4", "lora.sync=merged"], "guesses by a model of its own"),
]  # fmt: skip
TAKEN = [
    ['{quantization = "fp8_per_channel"}', BF16],
    ["{block_size = 64}"],
    ["{num_gpu_blocks_override = 7}"],
    ["{long_prefill_token_threshold_adaptive = true, max_num_batched_tokens = 512, watermark = 0}"],
    ["{enforce_eager = false}", CUDA],
    ['{speculative_config = {method = "ngram", num-speculative-tokens = 3}, long_prefill_token_threshold = 64}', CUDA],
    ['{speculative_config = {method = "ngram_gpu", num_speculative_tokens = 3}}', CUDA],
    ['{speculative_config = {method = "suffix", num_speculative_tokens = 3}}', CUDA],
    [DRAFT % "num_speculative_tokens = 3", CUDA, "lora.rank=4", "lora.sync=adapter"],  # engines read the folder
    ['{attention_backend = "flash_attn", mamba_backend = "cpu", kv_cache_dtype = "fp8", optimization_level = 2}', CUDA],
    ['{cpu_offload_gb = 1, cpu_offload_params = ["a"], limit_mm_per_prompt = {image = {count = 2}}}', CUDA],
    ['{compilation_config = {mode = 3, cudagraph_mode = "FULL", cudagraph_capture_sizes = [1, 2]}}', CUDA],
    ['{quantization = "online", quantization_config = {linear = "fp8_per_channel"}, attention_config = {}}', CUDA],
]  # fmt: skip
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


def test_engines_that_read_a_folder_may_guess_by_a_model_on_a_gpu():
    """evaluate's. As the commands ask: in a process of its own."""
    config = load_config(RECIPE, [f"rollout.vllm={DRAFT % 'num_speculative_tokens = 3'}", CUDA])
    check_arguments(config, starts_empty=False)
    with pytest.raises(RecipeError, match="the actor sends none for it; set method to 'ngram', "):
        check_arguments(config)


def test_what_the_program_sets_can_not_be_given_and_is_vllms(results):
    """But for the tokens of a step and of a block, which are defaults."""
    _, names, ours = result(results, "asked")
    assert (
        ours - {"max_num_batched_tokens", "block_size"}
        <= OWN.keys() | OWN_ON_A_CPU.keys()
        <= names | {"worker_extension_cls"}
    )
    unfit = UNFIT.keys() | UNFIT_ON_A_CPU.keys()
    assert unfit <= names and not unfit & ours


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
