"""What a recipe may give in rollout.vllm; what vLLM makes of the rest: tests/e2e/test_engine_settings.py."""

import pytest

from megatron_nft.config import load_config, to_toml
from megatron_nft.config.vllm_settings import allowed, refused_of_empty_engines, speculation_method
from megatron_nft.rollout.vllm.arguments import no_argument
from tests.unit.config.conftest import refusal


def test_others_of_vllms_arguments_are_handed_on_and_kept_in_the_recipe(recipe, tmp_path):
    given = {"quantization": "fp8_per_channel", "speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}
    override = (
        'rollout.vllm={quantization = "fp8_per_channel", speculative_config = {method = "ngram", '
        "num_speculative_tokens = 3}}"
    )
    config = load_config(recipe, [override, "cluster.device=cuda"])
    assert config.rollout.vllm == given
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml").rollout.vllm == given


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ('{dtype = "float16"}', "rollout.vllm.dtype = 'float16' is set by the program: set rollout.dtype"),
        ("{max_num_seqs = 3}", "rollout.vllm.max_num_seqs = 3 is set by the program: set rollout.max_concurrent"),
        ('{logprobs_mode = "raw_logprobs"}', "the log-probs must be those of the distribution that is sampled"),
        (
            "{override_generation_config = {eos_token_id = 5}}",
            "where answers end; set rollout.temperature, top_p",
        ),
        (
            '{generation_config = "vllm"}',
            "rollout.vllm.generation_config = 'vllm' can't be given: it would change what",
        ),
        ("{block_size = inf}", "rollout.vllm.block_size = inf: vLLM takes finite numbers only; give one, or leave it"),
        ("{quantization_config = {scales = [1.0, nan]}}", "= {'scales': [1.0, nan]}: vLLM takes finite numbers only"),
        ('{worker_cls = "my.Worker"}', "its worker takes the actor's weights in"),
        ('{scheduler_cls = "my.Scheduler"}', "it would put other code into the engine; scheduling_policy is"),
        ('{logits_processors = ["my.Processor"]}', "it would change the distribution that is sampled; set rollout.t"),
        ("{skip_tokenizer_init = true}", "the engine would not know where answers end"),
        ("{kv_offloading_size = 4.0}", "keys and values of older weights would outlive a weight sync"),
        ('{model_impl = "transformers"}', "weights go into vLLM's own classes of models; leave it out"),
        ("{prefill_context_parallel_size = 2}", "the engines are rollout.engines x rollout.tp"),
        ("{data_parallel_size_local = 2}", "the engines are rollout.engines x rollout.tp"),
        ("{aux_output_config = {enable_return_routed_experts = true}}", "set actor.routing_replay"),
        ('{spec_method = "ngram"}', "speculative_config = {method = ..., num_speculative_tokens = ...} says it"),
        (
            '{speculative_config = {rejection_sample_method = "synthetic"}}',
            "guesses would be kept by a rate of their own",
        ),
        (
            '{speculative_config = {method = "custom_class", model = "os:path", num_speculative_tokens = 2}}',
            "method = 'custom_class' can't be given: it would put other code into the engine",
        ),
        (
            '{speculative_config = {model = "os.path", num_speculative_tokens = 2}}',
            "model = 'os.path' can't be given: it would put other code into the engine",
        ),
        (
            '{structured_outputs_config = {reasoning_parser_plugin = "x.py"}}',
            "structured_outputs_config.reasoning_parser",
        ),
        ("{trust_remote_code = true}", "no code of a model folder is run"),
    ],
)
def test_what_the_program_sets_is_refused_with_the_setting_to_use(recipe, given, says):
    assert says in refusal(recipe, f"rollout.vllm={given}")


def test_all_that_is_wrong_is_told(recipe):
    words = refusal(recipe, 'rollout.vllm={seed = 1, dtype = "float16", block_size = 16}')
    assert "rollout.vllm.seed" in words and "rollout.vllm.dtype" in words and "block_size" not in words


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("enforce_eager = true", "on a CPU nothing is compiled"),
        ("enable_expert_parallel = true", "vLLM's CPU engine dies at its first token"),
        ("enable_chunked_prefill = true", "dies of an answer's seed when a prompt is split"),
        (
            "long_prefill_token_threshold = 4",
            "when a prompt is split, and longer ones would be",
        ),
        ("max_num_scheduled_tokens = 32", "would wait for ever; set max_num_batched_tokens to bound a step"),
        ('mamba_cache_mode = "align"', "which no model here has"),
        ('kv_cache_dtype = "fp8"', "8-bit ones take some processors only, and none has been tried"),
        *(
            (
                f'speculative_config = {{method = "{method}", num_speculative_tokens = 3}}',
                "its log-probs are no numbers",
            )
            for method in ("ngram", "suffix", "draft_model")
        ),
    ],
)
def test_what_is_the_recipes_to_give_on_a_gpu_only(recipe, setting, why):
    given = f"rollout.vllm={{{setting}}}"
    assert why in refusal(recipe, given, "cluster.device=cpu")
    assert list(load_config(recipe, [given, "cluster.device=cuda"]).rollout.vllm) == [setting.split()[0]]


def test_what_a_cpu_can_not_do_may_be_off_there(recipe):
    off = '{long_prefill_token_threshold = 0, mamba_cache_mode = "none", kv_cache_dtype = "auto"}'
    assert load_config(recipe, [f"rollout.vllm={off}", "cluster.device=cpu"]).rollout.vllm


def test_engines_that_start_empty_guess_without_a_model():
    """An actor sends none of a draft model's weights."""
    for method in ("ngram", "ngram_gpu", "suffix"):
        assert not list(refused_of_empty_engines({"speculative_config": {"method": method}}))
    for method in (
        "draft_model",
        "eagle",
        "eagle3",
        "medusa",
        "mlp_speculator",
        "mtp",
        "deepseek_mtp",
        "dflash",
        "dspark",
    ):
        (line,) = refused_of_empty_engines({"speculative_config": {"method": method, "model": "some/folder"}})
        assert f"not for training: {method!r} guesses by a model of its own" in line
        assert "set method to 'ngram', 'ngram_gpu', 'suffix', or leave speculative_config out" in line
    assert list(refused_of_empty_engines({"speculative_config": {"model": "some/folder"}})), "vLLM takes a draft model"
    assert not list(refused_of_empty_engines({"block_size": 32}))


def test_a_method_that_is_not_said_is_what_vllm_makes_of_the_model():
    assert speculation_method({"model": "ngram"}) == "ngram"
    assert speculation_method({"model": "package.Guesser"}) == "custom_class"
    assert speculation_method({"model": "folder/model-1.5"}) == "draft_model"
    assert speculation_method({"method": "eagle", "model": "package.Guesser"}) == "eagle"


def test_only_names_that_may_be_given_are_suggested():
    both, of_a_gpu_only = ["enable_prefix_caching", "quantization"], ["enforce_eager", "speculative_config"]
    names = ["enable_lora", *both, *of_a_gpu_only, "worker_cls"]
    of_a_gpu = allowed(names, "cuda")
    assert of_a_gpu == [*both, *of_a_gpu_only]
    assert allowed(names, "cpu") == both
    assert "enable_lora" in no_argument("enable_log_requests", names), "what the mend is for"
    assert no_argument("enable_log_requests", of_a_gpu) == (
        "rollout.vllm.enable_log_requests is no argument of this vLLM's engines"
    )
    assert no_argument("quantisation", of_a_gpu).endswith("; did you mean quantization?")
