"""config.json variants of every family, drawn by hypothesis: within what transformers may accept, and beyond it.

`variants` is the strategy, `draw` a list of them, the same each time; `make_model` writes one as a folder with random
weights. Used by tests/unit/families/test_against_transformers.py and tests/e2e/test_variants.py.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from megatron_nft.families.registry import families

BASE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320,
    "max_position_embeddings": 256, "num_key_value_heads": 2,
}  # fmt: skip
MIXTURES = {
    "qwen3_moe": {"num_experts": 12, "moe_intermediate_size": 32},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
    "mixtral": {"num_local_experts": 4},
}
"""Beside BASE, of families with experts: sizes that have no default."""
FOR_ENGINES = BASE | {"hidden_size": 256}
"""vLLM's CPU engine knows heads of 32, 64, 128 ... numbers."""
HEAD_DIMS = {8: 32, 16: 64, 32: 32}

thetas = st.sampled_from([10000, 10000.0, 500000.0, 1e6])
YARN = {
    "attention_factor": st.sampled_from([None, 1.0, 1.3]), "beta_fast": st.sampled_from([None, 32, 16.0]),
    "beta_slow": st.sampled_from([None, 1, 2.0]), "mscale": st.sampled_from([None, 0, 1.0, 0.7]),
    "mscale_all_dim": st.sampled_from([None, 0, 1.0]), "truncate": st.booleans(),
    "original_max_position_embeddings": st.sampled_from([64, 128]), "rope_theta": thetas,
}  # fmt: skip
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaling(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """The parameters of one kind of rope, under either generation's name of the kind."""
    factor = {"factor": st.sampled_from([1.0, 2, 4.0])}
    required, optional = {
        "default": ({}, {"rope_theta": thetas, "partial_rotary_factor": st.sampled_from([1.0, 0.5])}),
        "linear": (factor, {"rope_theta": thetas}),
        "dynamic": (factor, {"rope_theta": thetas}),
        "yarn": (factor, YARN),
        "llama3": (
            factor | {name: st.just(value) for name, value in LLAMA3.items()},
            {"original_max_position_embeddings": st.sampled_from([8192, 128]), "rope_theta": thetas},
        ),
    }[kind]
    drawn = st.fixed_dictionaries(required, optional=optional)
    return st.tuples(drawn, st.sampled_from(["rope_type", "type"])).map(lambda t: {t[1]: kind} | t[0])


ropes = st.one_of(
    st.none(), st.just({}), *(scaling(kind) for kind in ("default", "linear", "dynamic", "yarn", "llama3"))
)
DENSE = sorted(families().keys() - MIXTURES.keys())
KEYS = {
    "num_key_value_heads": st.sampled_from([None, 1, 2, 4, 3]),
    "head_dim": st.sampled_from([None, 8, 16, 32]),
    "num_attention_heads": st.sampled_from([2, 4, 8]),
    "max_position_embeddings": st.sampled_from([256, 32768]),
    "rms_norm_eps": st.sampled_from([1e-5, 1e-6]),
    "tie_word_embeddings": st.booleans(),
    "hidden_act": st.sampled_from(["silu", "silu", "silu", "gelu"]),
    "attention_bias": st.booleans(),
    "mlp_bias": st.just(False),
    "rope_theta": thetas,
    "rope_scaling": ropes,
    "rope_parameters": ropes,
    "sliding_window": st.sampled_from([None, 48, 4096]),
    "use_sliding_window": st.booleans(),
    "max_window_layers": st.sampled_from([0, 1, 2, 28]),
    "layer_types": st.sampled_from([None, ["full_attention"] * 2, ["full_attention", "sliding_attention"]]),
    "original_max_position_embeddings": st.just(128),
    "logits_scaling": st.sampled_from([1.0, 8.0]),
    "final_logit_softcapping": st.sampled_from([None, 30.0]),
    "partial_rotary_factor": st.sampled_from([1.0, 0.5]),
}
variants = st.fixed_dictionaries({"model_type": st.sampled_from(DENSE)}, optional=KEYS)
OF_MIXTURES = {
    "num_experts": st.sampled_from([None, 0, 4, 12]), "num_local_experts": st.sampled_from([4, 12]),
    "num_experts_per_tok": st.sampled_from([1, 2, 3, 5]), "norm_topk_prob": st.booleans(),
    "mlp_only_layers": st.sampled_from([None, [], [0], [1, 7], [0, 1], 0]),
    "decoder_sparse_step": st.sampled_from([1, 2, 3]), "qkv_bias": st.booleans(),
    "shared_expert_intermediate_size": st.sampled_from([0, 32]), "router_jitter_noise": st.sampled_from([0.0, 0.1]),
    "output_router_logits": st.booleans(), "n_shared_experts": st.sampled_from([None, 1]),
    "scoring_func": st.sampled_from(["softmax", "sigmoid"]),
}  # fmt: skip
SOME = ("num_key_value_heads", "head_dim", "rope_theta", "sliding_window", "use_sliding_window", "tie_word_embeddings",
        "layer_types", "rope_parameters")  # fmt: skip
mixture_variants = st.sampled_from(sorted(MIXTURES)).flatmap(
    lambda family: st.fixed_dictionaries(
        {"model_type": st.just(family)} | {key: st.just(value) for key, value in MIXTURES[family].items()},
        optional={key: KEYS[key] for key in SOME}
        | {key: values for key, values in OF_MIXTURES.items() if key not in MIXTURES[family]},
    )
)


def draw(number: int, strategy: st.SearchStrategy[dict[str, Any]] = variants) -> list[dict[str, Any]]:
    """Changes to BASE: so many, the same each time."""
    drawn: list[dict[str, Any]] = []

    @settings(
        max_examples=number, derandomize=True, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), database=None,
    )  # fmt: skip
    @given(strategy)
    def collect(changes: dict[str, Any]) -> None:
        drawn.append(changes)

    collect()
    return drawn


def for_engines(changes: dict[str, Any]) -> dict[str, Any]:
    """A whole config.json of sizes that vLLM's CPU engine has kernels for."""
    keys = FOR_ENGINES | changes
    return keys | {"head_dim": HEAD_DIMS.get(keys["head_dim"])} if "head_dim" in keys else keys


def make_model(keys: dict[str, Any], folder: Path, seed: int) -> Path:
    """The model that transformers reads from this config.json, random, with this very config.json and a tokenizer."""
    from transformers import AutoConfig

    from tests.parallel.families import save_tokenizer
    from tests.parallel.oracle import save_random

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(keys))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.from_pretrained(folder)
        config.initializer_range = 0.1  # so that positions show in the log-probs
        config.pad_token_id = None
        save_random(config, folder, seed=seed)
    save_tokenizer(folder, keys["vocab_size"])
    (folder / "config.json").write_text(json.dumps(keys))
    return folder
