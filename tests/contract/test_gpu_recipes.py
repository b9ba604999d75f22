"""Every shipped recipe for GPUs through every constructor that its settings reach: Megatron's configurations on each
stage, the kind of layers, Megatron's optimizer, vLLM's arguments. Those need no weights, and no ranks.
"""

import json
from contextlib import suppress
from pathlib import Path

from megatron_nft.config import load_config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.rollout.api import EngineError
from megatron_nft.rollout.vllm.engine import VllmEngine
from tests.parallel.ranks import run_ranks
from tests.unit.plan.conftest import QWEN2, SHAPES

RECIPES = sorted(path for path in Path("launch/recipes").glob("*.toml") if not path.stem.startswith("quickstart"))
STAGE = "tests.contract.played"


def constructed(rank, master, recipes):
    """By (recipe, model folder): what Megatron and vLLM make of the settings, in plain numbers."""
    import vllm

    given = {}

    def keep(**arguments):
        given.clear()
        given.update(arguments)
        raise RuntimeError("kept")

    vllm.LLM = keep
    found = []
    for recipe, model in recipes:
        config = load_config(recipe, [f"model.path={model}"], checks_weights=False)
        with suppress(EngineError):
            VllmEngine(model, config.rollout, device="cuda", max_model_len=config.max_sequence_tokens, seed=1,
                       is_colocated=config.is_colocated, starts_empty=True,
                       lora=config.lora if config.syncs_adapter else None)  # fmt: skip
        engine = vllm.EngineArgs(**given)
        found.append(
            {
                "tp": engine.tensor_parallel_size,
                "sleeps": engine.enable_sleep_mode,
                "longest": engine.max_model_len,
                "dtype": engine.dtype,
                "adapters": (engine.enable_lora, engine.load_format),
                **of_megatron(config),
            }
        )
    return found


def of_megatron(config):
    """What its constructors make of the settings, on each stage."""
    import torch

    from megatron_nft.actor.model import layer_spec, transformer_config
    from megatron_nft.actor.optimizer import optimizer_config
    from megatron_nft.actor.performance import ddp_config
    from megatron_nft.actor.topology import Topology

    actor, layers = config.actor, set()
    for stage in range(actor.pp):
        sizes = {f"{axis}_size": getattr(actor, axis) for axis in ("tp", "cp", "dp", "pp")}
        place = {"tp_rank": 0, "cp_rank": 0, "dp_rank": 0, "pp_rank": stage}
        topology = Topology(**sizes, **place, device=torch.device("cuda"))
        megatron = transformer_config(read_hf_config(config.model.path), actor, topology)
        spec = layer_spec(megatron, topology)
        (layer,) = {id(one): one for one in getattr(spec, "layer_specs", [spec])}.values()
        linear = layer.submodules.self_attention.submodules.linear_qkv
        mlp = layer.submodules.mlp.keywords["submodules"]  # of a functools.partial, as Megatron-Core 0.19 has them
        experts = [mlp.experts.func.__name__] if hasattr(mlp, "experts") else []
        kinds = (linear.__name__, *experts)
        layers.add((megatron.num_layers, megatron.bf16, kinds))
    ddp, optimizer = ddp_config(actor), optimizer_config(config.optimizer, actor)
    return {
        "layers": layers,
        "overlaps": (ddp.overlap_grad_reduce, ddp.overlap_param_gather, optimizer.overlap_param_gather),
        "sharded": (ddp.use_distributed_optimizer, optimizer.use_distributed_optimizer, ddp.grad_reduce_in_fp32),
        "optimizer": (optimizer.lr, optimizer.weight_decay, optimizer.clip_grad, optimizer.bf16),
    }


def test_every_recipe_is_what_every_constructor_takes(tmp_path):
    folders = {}
    for recipe in RECIPES:
        name = next(name for name in SHAPES if name in recipe.stem)
        folders[recipe] = tmp_path / name
        folders[recipe].mkdir(exist_ok=True)
        (folders[recipe] / "config.json").write_text(json.dumps(QWEN2 | SHAPES[name]))
    assert len(RECIPES) >= 8
    pairs = [(str(recipe), str(folder)) for recipe, folder in folders.items()]
    (found,) = run_ranks(1, constructed, pairs, stage=STAGE)
    for recipe, made in zip(RECIPES, found, strict=True):
        config = load_config(recipe, [f"model.path={folders[recipe]}"], checks_weights=False)
        hf = read_hf_config(config.model.path)
        kinds = ("TELayerNormColumnParallelLinear", *(["TEGroupedMLP"] if hf.mixture else []))
        gather = config.actor.overlap_param_gather
        assert made == {
            "tp": config.rollout.tp,
            "sleeps": config.is_colocated,
            "longest": config.max_sequence_tokens,
            "dtype": "bfloat16",
            "adapters": (True, "hf") if config.lora.rank else (False, "dummy"),
            "layers": {(hf.num_hidden_layers, True, kinds)},
            "overlaps": (config.actor.overlap_grad_reduce, gather, gather),
            "sharded": (True, True, True),
            "optimizer": (2e-5, 0.0, 1.0, True) if config.lora.rank else (1e-6, 0.1, 1.0, True),
        }, recipe


def refused(rank, master):
    rollout = load_config("launch/recipes/quickstart.toml").rollout
    try:
        VllmEngine("tests/assets/quickstart/model", rollout, device="cpu", max_model_len=192, seed=1)
    except EngineError as error:
        return str(error)


def test_engines_of_a_cpu_recipe_say_which_environment_is_theirs():
    (words,) = run_ranks(1, refused)
    assert "launch/install.sh" in words
