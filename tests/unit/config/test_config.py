"""Recipes: what is read, what is refused, and what the refusal says."""

import json
import subprocess
import sys

import pytest

from megatron_nft.config import RecipeError, load_config, to_toml
from megatron_nft.families.hf_config import ModelFolderError

MODEL = {
    "model_type": "qwen2", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'[model]\npath = "{model}"\n[data]\ntrain = ["train.parquet"]\nmax_prompt_tokens = 100\n'
        "[rollout]\nmax_answer_tokens = 100\n"
    )
    return path


def refusal(recipe, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_config(recipe, overrides)
    return str(caught.value)


def test_command_line_over_recipe_over_default(recipe):
    config = load_config(recipe, ["actor.tp=2", "run.name=mine", "optimizer.learning_rate=3e-4"])
    assert config.data.max_prompt_tokens == 100 and config.rollout.group_size == 16
    assert (config.actor.tp, config.run.name, config.optimizer.learning_rate) == (2, "mine", 3e-4)


def test_resolved_recipe_reads_back_equal(recipe, tmp_path):
    modes = 'verdict.modes={gsm8k = "last_number", "a/b \\" c" = "boxed", shop = "shop.grading:price"}'
    config = load_config(recipe, ["run.seed=7", modes, "evaluate.samples_of={math500 = 1}"])
    assert config.verdict.modes == {"gsm8k": "last_number", 'a/b " c': "boxed", "shop": "shop.grading:price"}
    again = tmp_path / "resolved.toml"
    again.write_text(to_toml(config))
    assert load_config(again) == config


def test_a_run_needs_training_data_and_an_evaluation_none(recipe):
    assert "data.train is missing or empty" in refusal(recipe, "data.train=[]")
    config = load_config(None, [f"model.path={recipe.parent / 'model'}", "data.max_prompt_tokens=8",
                                "rollout.max_answer_tokens=8"], trains=False)  # fmt: skip
    assert config.data.train == []


def test_greedy_answers_are_all_equal(recipe):
    assert load_config(recipe, ["evaluate.temperature=0", "evaluate.samples=1"]).evaluate.temperature == 0
    assert "temperature = 0 gives 4 equal answers" in refusal(recipe, "evaluate.temperature=0", "evaluate.samples=4")


def test_config_is_read_only(recipe):
    with pytest.raises(ValueError, match="frozen"):
        load_config(recipe).run.seed = 2


def test_unknown_key_lists_the_known_ones(recipe):
    message = refusal(recipe, "actor.tensor=2")
    assert "actor.tensor: unknown key; known here: tp, pp, dp" in message
    assert "rollouts: unknown key" in refusal(recipe, "rollouts.tp=2")


def test_every_wrong_value_is_listed_with_its_reason(recipe):
    message = refusal(recipe, "rollout.group_size=1", "actor.precision=fp16")
    assert "rollout.group_size = 1: Input should be greater than or equal to 2" in message
    assert "actor.precision = 'fp16'" in message and "'fp32', 'bf16', 'fp8-delayed'" in message


@pytest.mark.parametrize("mode", ["box", "module:", "module:two words", ":function", "boxed:", "a.b", "last number"])
def test_a_verdict_mode_is_one_of_ours_or_a_function_of_a_module(recipe, mode):
    message = refusal(recipe, f'verdict.modes={{shop = "{mode}"}}')
    assert f"verdict.modes.shop = '{mode}': choose one of boxed, strict_boxed, answer_line, last_number" in message
    assert message.endswith('or a function of your own as "package.module:function"')


def test_tp_that_does_not_divide_the_heads(recipe):
    assert refusal(recipe, "actor.tp=3") == (
        "actor.tp = 3 does not divide the model's 2 key/value heads; choose one of [1, 2]"
    )


def test_pp_that_does_not_divide_the_layers(recipe):
    assert "actor.pp = 3 does not divide the model's 4 layers; choose one of [1, 2, 4]" in refusal(recipe, "actor.pp=3")


def test_virtual_stages_and_uneven_ends(recipe):
    assert load_config(recipe, ["actor.pp=2", "actor.vpp=2"]).actor.vpp == 2
    assert load_config(recipe, ["actor.pp=2", "actor.num_layers_in_last_pipeline_stage=1"])
    assert "actor.vpp = 2 needs actor.pp > 1" in refusal(recipe, "actor.vpp=2")
    message = refusal(recipe, "actor.pp=2", "actor.vpp=3")
    assert "pp = 2 x vpp = 3 stages do not divide the model's 4 layers; with this pp choose vpp from [1, 2]" in message
    message = refusal(recipe, "actor.pp=2", "actor.vpp=2", "actor.num_layers_in_first_pipeline_stage=1")
    assert "num_layers_in_first_pipeline_stage = 1 does not split evenly over actor.vpp = 2 stages" in message
    message = refusal(recipe, "actor.pp=2", "actor.num_layers_in_first_pipeline_stage=4")
    assert "num_layers_in_first_pipeline_stage = 4 leave 0 of the model's 4 layers for 1 other ranks" in message
    assert "needs actor.pp > 1" in refusal(recipe, "actor.num_layers_in_last_pipeline_stage=2")


def test_fp8_is_for_cuda_and_its_bf16_layers_for_fp8(recipe):
    config = load_config(recipe, ["actor.precision=fp8-blockwise", "actor.num_layers_at_end_in_bf16=1"])
    assert config.actor.num_layers_at_end_in_bf16 == 1
    message = refusal(recipe, "actor.precision=fp8-blockwise", "cluster.device=cpu")
    assert 'actor.precision = "fp8-blockwise" needs a CUDA device' in message
    assert "are for FP8" in refusal(recipe, "actor.precision=bf16", "actor.num_layers_at_end_in_bf16=1")
    message = refusal(recipe, "actor.precision=fp8-delayed", "actor.num_layers_at_end_in_bf16=1")
    assert "fp8-delayed keeps no layers in bf16" in message


def test_world_size_that_does_not_fit(recipe):
    message = refusal(recipe, "actor.tp=2", "actor.pp=2", "cluster.actor_ranks=8")
    assert "tp 2 x pp 2 x dp 1 = 4 != world size 8; set actor.dp = 2" in message


def test_updates_must_divide_groups(recipe):
    assert "not a multiple" in refusal(recipe, "train.groups_per_step=10", "train.updates_per_step=4")


def test_sequences_longer_than_the_model(recipe):
    assert "= 600 > the model's max_position_embeddings 512" in refusal(recipe, "rollout.max_answer_tokens=500")


def test_missing_model_folder(recipe):
    with pytest.raises(ModelFolderError, match="no such folder; give a local HF model folder"):
        load_config(recipe, ["model.path=/nowhere"])


def test_unsupported_architecture(recipe, tmp_path):
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL | {"model_type": "gpt2"}))
    with pytest.raises(ModelFolderError, match="model_type 'gpt2' is not supported; supported: qwen2"):
        load_config(recipe)


def test_malformed_files_and_overrides(recipe, tmp_path):
    assert "no recipe at" in refusal(tmp_path / "none.toml")
    assert "not of the form section.key=value" in refusal(recipe, "actor.tp")
    recipe.write_text("[model\n")
    assert "not valid TOML" in refusal(recipe)
    recipe.write_text("[data]\ntrain = []\n")
    assert "model: missing; the recipe must set it" in refusal(recipe)


def test_shipped_recipes_load():
    assert load_config("launch/recipes/quickstart.toml").cluster.device == "cpu"


def test_config_imports_nothing_heavy():
    code = "import megatron_nft.config, sys; print([m for m in ('torch','ray','vllm','megatron') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_sequences_beyond_a_sliding_window(recipe, tmp_path):
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(MODEL | {"model_type": "mistral", "sliding_window": 128})
    )
    message = refusal(recipe)
    assert "rollout.max_answer_tokens = 200 > the model's sliding_window 128" in message
    assert load_config(recipe, ["rollout.max_answer_tokens=28"])


def algorithm(recipe, *overrides):
    return load_config(recipe, overrides).algorithm


def test_presets(recipe):
    nft, rft, grpo, dr_grpo, dapo = (
        algorithm(recipe, f"algorithm.name={name}") for name in ("nft", "rft", "grpo", "dr_grpo", "dapo")
    )
    assert algorithm(recipe) == nft
    assert [a.neg_weight for a in (nft, rft, grpo, dr_grpo, dapo)] == [1, 0, -1, -1, -1]
    assert [a.normalize for a in (nft, rft, grpo, dr_grpo, dapo)] == [1, 1, 2, 1, 2]
    assert [a.reduction for a in (nft, rft, grpo, dr_grpo, dapo)] == [
        "tokens", "tokens", "sequences", "constant", "tokens",
    ]  # fmt: skip
    assert [(a.clip_low, a.clip_high) for a in (grpo, dr_grpo, dapo)] == [(0.2, 0.2), (0.2, 0.2), (0.2, 0.28)]
    assert [a.overlong_penalty for a in (nft, grpo, dapo)] == [0, 0, 1]
    assert [a.is_clipped for a in (nft, rft, grpo, dr_grpo, dapo)] == [False, False, True, True, True]


def test_neg_weight_of_minus_one_alone_means_dapo(recipe):
    assert algorithm(recipe, "algorithm.neg_weight=-1") == algorithm(recipe, "algorithm.name=dapo")


def test_a_preset_may_be_overridden(recipe):
    mine = algorithm(recipe, "algorithm.name=dapo", "algorithm.overlong_penalty=0", "algorithm.clip_high=0.5")
    assert (mine.overlong_penalty, mine.clip_high, mine.normalize) == (0, 0.5, 2)
    assert algorithm(recipe, "algorithm.neg_weight=0.5").name == "nft"


@pytest.mark.parametrize("name", ["nft", "rft", "grpo", "dr_grpo", "dapo"])
def test_a_resolved_preset_reads_back_equal(recipe, tmp_path, name):
    config = load_config(recipe, [f"algorithm.name={name}"])
    again = tmp_path / "resolved.toml"
    again.write_text(to_toml(config))
    assert load_config(again) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=ppo"], "Input should be 'nft', 'rft', 'grpo', 'dr_grpo' or 'dapo'"),
        (["neg_weight=-0.5"], "neg_weight = -0.5: choose 0 (RFT) or more (1: NFT), or exactly -1 (DAPO)"),
        (["normalize=3"], "algorithm.normalize = 3: Input should be 0, 1 or 2"),
        (["kl_weight=0.1"], "kl_weight = 0.1 needs a reference model; set model.reference to an HF folder"),
        (["overlong_penalty=1"], 'overlong_penalty = 1 shapes a reward, and "nft" has verdicts only'),
        (["name=nft", "neg_weight=-1"], "leave algorithm.name out (DAPO), or choose one of grpo, dr_grpo, dapo"),
        (["name=grpo", "neg_weight=0.5"], 'leave neg_weight out, or set algorithm.name = "nft"'),
        (["name=rft", "neg_weight=1"], "learns from right answers only"),
        (["name=grpo", "normalize=0"], 'normalize = 0 is not defined for "grpo"; choose 1'),
        (["name=dapo", "ratio_type=sequence"], "leave it at"),
    ],
)
def test_algorithms_that_are_none(recipe, overrides, message):
    assert message in refusal(recipe, *(f"algorithm.{o}" for o in overrides))


def test_a_reference_of_another_shape(recipe, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(MODEL | {"num_hidden_layers": 2}))
    message = refusal(recipe, "algorithm.kl_weight=0.1", f"model.reference={other}")
    assert "is not of the same architecture as model.path" in message
    with pytest.raises(ModelFolderError, match="no such folder"):
        load_config(recipe, ["algorithm.kl_weight=0.1", "model.reference=/nowhere"])


def test_performance_settings_that_do_not_go_together(recipe):
    cuda_only = [
        "actor.gradient_accumulation_fusion=true",
        'actor.offload_modules=["mlp_norm"]',
        "actor.cpu_offloading_num_layers=1",
        "optimizer.optimizer_cpu_offload=true",
    ]
    assert load_config(recipe, cuda_only[:2]).actor.offload_modules == ["mlp_norm"]
    for setting in cuda_only:
        message = refusal(recipe, setting, "cluster.device=cpu")
        assert f"{setting.partition('=')[0]} needs a CUDA device" in message
    assert "needs actor.overlap_grad_reduce = true" in refusal(recipe, "actor.overlap_param_gather=true")
    overlap = ["actor.tp_comm_overlap=true", "actor.tp=2"]
    assert "not sequence_parallel = false and cp = 1" in refusal(recipe, *overlap)
    overlap.append("actor.sequence_parallel=true")
    assert load_config(recipe, overlap).actor.tp_comm_overlap
    message = refusal(recipe, *overlap, "actor.tokens_per_microbatch=100")
    assert "raise tokens_per_microbatch" in message
    message = refusal(recipe, "actor.cpu_offloading_num_layers=1", "actor.pp=2")
    assert "with pp > 1 use offload_modules" in message
    message = refusal(recipe, 'actor.offload_modules=["attn_proj"]')
    assert 'goes with "core_attn" only' in message
    assert load_config(recipe, ["actor.precision=fp8-blockwise", "actor.fp8_param=true"]).actor.fp8_param
    for precision in ("bf16", "fp8-mxfp8"):
        assert f'not "{precision}"' in refusal(recipe, f"actor.precision={precision}", "actor.fp8_param=true")


@pytest.mark.parametrize(
    ("overrides", "carrier"),
    [
        (["cluster.device=cpu"], "shared_memory"),
        (["cluster.device=cuda"], "collective"),
        (["cluster.device=cuda", "cluster.placement=colocated"], "cuda_ipc"),
        (["cluster.device=cpu", "weights.carrier=collective"], "collective"),
    ],
)
def test_the_carrier_follows_device_and_placement(overrides, carrier):
    assert load_config("launch/recipes/quickstart.toml", overrides).carrier == carrier


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["cluster.placement=colocated", "rollout.engines=3"], r"3 workers don't fit on the actor's 2 ranks"),
        (["weights.carrier=cuda_ipc"], r"needs GPUs that actor and engines share"),
        (["cluster.device=cuda", "weights.checksums=true"], r'for the "shared_memory" carrier, not "collective"'),
        (["cluster.device=cuda", "cluster.placement=colocated", "weights.carrier=collective"], "NCCL refuses"),
    ],
)
def test_placements_and_carriers_that_do_not_go_together_are_refused(overrides, says):
    with pytest.raises(RecipeError, match=says):
        load_config("launch/recipes/quickstart.toml", overrides)


def test_a_run_does_not_begin_from_its_own_checkpoint(tmp_path):
    run = [f'run.dir="{tmp_path}"', "run.name=one"]
    own, others = (f'checkpoint.resume="{tmp_path}/{name}/checkpoints/step_2"' for name in ("one", "two"))
    with pytest.raises(RecipeError, match=r"of this run, of which later steps are there, too; set run\.name"):
        load_config("launch/recipes/quickstart.toml", [*run, own])
    assert load_config("launch/recipes/quickstart.toml", [*run, others]).checkpoint.resume.endswith("step_2")
