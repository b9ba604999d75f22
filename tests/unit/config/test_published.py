"""The six published runs: every setting of their recipes against the table of what is published."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from megatron_nft.config import AlgorithmConfig, Config, RecipeError, load_config
from megatron_nft.evaluation.command_line import parse_arguments, read_settings

RECIPES = Path("launch/recipes")
SIZES = {"7b": "qwen2.5_math_7b_4x8h100", "32b": "qwen2.5_32b_16x8h100"}
RUNS = [(method, size) for method in ("nft", "rft", "dapo") for size in SIZES]
TABLE = tomllib.loads(Path("tests/assets/published/settings.toml").read_text())
OURS = TABLE.pop("ours")
PUBLISHED = {f"{section}.{key}": row for section, keys in TABLE.items() for key, row in keys.items()}
MODEL = "tests/assets/quickstart/model"  # any: no setting depends on it, but for the lengths


@pytest.fixture
def published(tmp_path):
    """published("nft", "7b", overrides...): its recipe as it is resolved, on a model of enough positions."""
    folder = tmp_path / "model"
    folder.mkdir()
    shape = json.loads(Path(MODEL, "config.json").read_text()) | {"max_position_embeddings": 32768}
    shape |= {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 512, "intermediate_size": 1024}
    (folder / "config.json").write_text(json.dumps(shape))

    def load(method: str, size: str, *overrides: str) -> Config:
        return load_config(RECIPES / f"{method}_{SIZES[size]}.toml", [f"model.path={folder}", *overrides])

    return load


def expected(row, method, size):
    """The published value of a run; None: there is none of its own."""
    value = row["value"]
    keys = (f"{method}_{size}", method, size)
    if isinstance(value, dict) and set(value) & {*keys, *SIZES, "nft", "rft", "dapo", *(f"{m}_{s}" for m, s in RUNS)}:
        return next((value[key] for key in keys if key in value), None)
    return value


def settings(config):
    return {f"{section}.{key}": value for section, keys in config.model_dump().items() for key, value in keys.items()}


def drifted(config, method, size):
    """The settings that are others than the table's."""
    resolved = settings(config)
    values = {name: expected(row, method, size) for name, row in PUBLISHED.items()}
    values = {name: value for name, value in values.items() if value is not None}
    values |= {name: None if row["value"] == "null" else row["value"] for name, row in OURS.items() if "value" in row}
    return {name for name, value in values.items() if resolved[name] != value}


@pytest.mark.parametrize(("method", "size"), RUNS)
def test_every_setting_is_the_published_one_or_named_as_ours(method, size, published):
    config = published(method, size)
    assert drifted(config, method, size) == set()
    others = [name for name in settings(config) if name not in PUBLISHED]
    assert [name for name in others if not any(fnmatch(name, pattern) for pattern in OURS)] == []
    assert [pattern for pattern in OURS if not any(fnmatch(name, pattern) for name in others)] == []


@pytest.mark.parametrize(
    "setting",
    ["train.steps=100", "lora.rank=32", 'rollout.tail="keep"', 'actor.precision="fp8-tensorwise"',
     'actor.precision="fp32"', "verdict.thoughts=false", 'data.prompt_suffix=" Hi"', "optimizer.skip_nonfinite=true",
     'rollout.vllm={quantization = "fp8"}', "algorithm.dual_clip=3.0", "algorithm.corrections={token_k1 = 0.2}"],
)  # fmt: skip
def test_a_recipe_that_drifts_is_noticed(setting, published):
    method = "dapo" if "dual_clip" in setting else "nft"
    assert drifted(published(method, "7b", setting), method, "7b") == {setting.partition("=")[0]}


def test_every_published_value_says_where_it_is_from():
    assert len(PUBLISHED) > 40 and all(row["source"] and set(row) == {"value", "source"} for row in PUBLISHED.values())
    assert all(row["why"] and set(row) <= {"value", "why"} for row in OURS.values())


def test_the_published_run_in_numbers(published):
    """320 rollout steps are 5,120 updates; DAPO's buffer at 32B is 4,096 tokens, and none at 7B."""
    seven, thirty_two = published("dapo", "7b"), published("dapo", "32b")
    for config in (seven, thirty_two):
        assert config.train.steps * config.train.updates_per_step == 5120
        assert config.optimizer.warmup_rollout_steps * config.train.updates_per_step == 160
    assert thirty_two.algorithm.overlong_share * thirty_two.rollout.max_answer_tokens == 4096
    assert seven.algorithm.overlong_share == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["nft", "rft"])
def test_neg_weight_of_minus_one_on_a_recipe_is_its_dapo(method, size, published):
    """As the authors' README has it."""
    dapo = published("dapo", size).algorithm
    assert published(method, size, "algorithm.neg_weight=-1.0").algorithm == dapo
    assert published(method, size, "algorithm.name=dapo").algorithm == dapo
    assert published(method, size, "algorithm.neg_weight=-1", "algorithm.clip_high=0.3").algorithm.clip_high == 0.3


def test_what_another_method_does_not_read_is_left_behind_too(tmp_path):
    """clamp_negative = 0.5 is a hint in the authors' 32B script; on the command line it is refused all the same."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[model]\npath = "{Path(MODEL).resolve()}"\n[data]\ntrain = ["a.jsonl"]\nmax_prompt_tokens = 64\n'
        "[rollout]\nmax_answer_tokens = 64\n"
        '[algorithm]\nname = "nft"\nclamp_negative = 0.5\nneg_weight_end = 0.5\nschedule_steps = 9\n'
    )
    plain = AlgorithmConfig(name="dapo", neg_weight=-1)
    for change in ("neg_weight=-1", "name=dapo"):
        assert load_config(recipe, [f"algorithm.{change}"]).algorithm == plain
    assert load_config(recipe, ["algorithm.name=rft"]).algorithm.clamp_negative == 1.0
    with pytest.raises(RecipeError, match=r"clamp_negative = 0\.5 is not read"):
        load_config(recipe, ["algorithm.name=dapo", "algorithm.clamp_negative=0.5"])


def test_every_recipe_of_ours_makes_the_authors_dapo_too():
    """Their punishment's share of an answer at 32B, none at 7B and below."""
    for path in sorted(RECIPES.glob("nft_qwen*.toml")):
        algorithm = tomllib.loads(path.read_text())["algorithm"]
        assert algorithm["overlong_share"] == (0 if "math" in path.name else 4096 / 14336), path.name


def test_the_7b_run_on_one_node_is_the_published_one_but_for_its_layout():
    one, four = (tomllib.loads((RECIPES / f"nft_qwen2.5_math_7b_{n}x8h100.toml").read_text()) for n in (1, 4))
    assert (one["rollout"].pop("engines"), four["rollout"].pop("engines")) == (8, 32)
    assert (one["actor"].pop("dp"), four["actor"].pop("dp")) == (4, 16)
    assert one == four


def test_a_finished_run_is_measured_as_it_asked_and_graded(published):
    """The command of slurm/README.md, on the recipe that a run leaves in its folder."""
    command = re.search(r"(?m)^sbatch slurm/evaluate.sbatch (.*)$", Path("slurm/README.md").read_text())[1]
    run = published("nft", "32b")
    words = [{"recipe.toml": "launch/recipes/nft_qwen2.5_32b_16x8h100.toml", "hf": str(run.model.path)}.get(
        word.rpartition("/")[2], word) for word in shlex.split(command)]  # fmt: skip
    config, out = read_settings(parse_arguments(None, [*words, f"model.path={run.model.path}"]))
    assert config.data.system_prompt == run.data.system_prompt != ""
    assert config.verdict.modes == run.verdict.modes != {}
    assert (config.evaluate, len(config.data.held_out)) == (run.evaluate, 6)
    assert (config.rollout.engines, config.rollout.tp, out) == (2, 4, run.run_dir / "evaluation")


def test_neg_weight_of_zero_is_the_scripts_rft_and_the_recipe_the_papers(published):
    paper, script = published("rft", "7b").algorithm, published("nft", "7b", "algorithm.neg_weight=0.0").algorithm
    assert (paper.neg_weight, paper.normalize) == (0, 0)
    assert (
        script.model_copy(update={"name": "rft_script"})
        == published("nft", "7b", "algorithm.name=rft_script").algorithm
    )
    assert (script.neg_weight, script.normalize, script.reduction, script.published_ranks) == (0, 1, "published", 32)


def test_another_method_leaves_the_recipes_own_settings_behind(published):
    grpo = published("nft", "7b", "algorithm.name=grpo").algorithm
    assert (grpo.reduction, grpo.normalize, grpo.clip_high, grpo.published_ranks) == ("sequences", 2, 0.2, None)
    rft = published("nft", "32b", "algorithm.name=rft").algorithm
    assert rft == published("rft", "32b").algorithm
