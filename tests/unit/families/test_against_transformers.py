"""config.json variants as transformers reads them: each is refused by name, or read to the same numbers."""

import json
import logging
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.families.registry import families, family_of
from megatron_nft.families.rope import rope_parameters
from tests.variants import BASE, MIXTURES, draw, mixture_variants, variants

NUM_EXPERTS = {"qwen3_moe": "num_experts", "qwen2_moe": "num_experts", "mixtral": "num_local_experts"}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")  # fmt: skip


def read_both(folder, keys):
    """(ours, or None if refused, what was said; transformers', or None if it refuses)"""
    from transformers import AutoConfig

    (folder / "config.json").write_text(json.dumps(keys))
    try:
        ours, words = read_hf_config(folder), ""
    except ModelFolderError as error:
        ours, words = None, str(error)
    try:
        theirs = AutoConfig.from_pretrained(folder)
    except Exception:  # of many kinds: its validators', KeyError, TypeError
        theirs = None
    return ours, words, theirs


def megatron_frequencies(hf):
    """(inverse frequencies, scale of cosines and sines), by what the family tells Megatron."""
    from megatron.core.models.common.embeddings import rotary_pos_embedding, yarn_rotary_pos_embedding

    gpt, config = family_of(hf).gpt_arguments(hf), family_of(hf).config_attributes(hf)
    if gpt["position_embedding_type"] == "rope":
        names = ("rotary_base", "rope_scaling", "rope_scaling_factor", "seq_len_interpolation_factor")
        rope = rotary_pos_embedding.RotaryEmbedding(
            hf.head_dim, 1.0, use_cpu_initialization=True, **{name: gpt[name] for name in names}
        )
        return rope.get_freqs_non_repeated(2)[1], 1.0
    rope = yarn_rotary_pos_embedding.YarnRotaryEmbedding.__new__(yarn_rotary_pos_embedding.YarnRotaryEmbedding)
    arguments = {name.removeprefix("yarn_"): value for name, value in config.items()}
    rotary = {"rotary_base": gpt["rotary_base"], "scaling_factor": arguments.pop("rotary_scaling_factor")}
    for name, value in (arguments | rotary | {"dim": hf.head_dim, "rotary_interleaved": False}).items():
        object.__setattr__(rope, name, value)
    powers = rotary["rotary_base"] ** (torch.arange(0, hf.head_dim, 2, dtype=torch.float32) / hf.head_dim)
    device = _Anywhere()
    for name, value in (("inv_freq_extra", 1 / powers), ("inv_freq_inter", 1 / (rotary["scaling_factor"] * powers))):
        object.__setattr__(rope, name, value)
    with device:
        emb, scale = rope.get_emb(2)
    return emb[1, 0, 0, : hf.head_dim // 2], scale


class _Anywhere:
    """Megatron moves frequencies to the current CUDA device; here there is none."""

    def __enter__(self):
        self.before, torch.cuda.current_device = torch.cuda.current_device, lambda: torch.device("cpu")

    def __exit__(self, *error):
        torch.cuda.current_device = self.before


def transformers_frequencies(config):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)), 1.0
    return ROPE_INIT_FUNCTIONS[kind](config)


def assert_equal(ours, theirs):
    assert {name: getattr(ours, name) for name in SIZES} == {name: getattr(theirs, name) for name in SIZES}
    derived = theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or derived)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.sliding_window == (getattr(theirs, "sliding_window", None) or None)  # Qwen2-MoE: 0 for none
    if ours.mixture is not None:
        assert_same_mixture(ours, theirs)
    has_bias = {"qwen2": True, "qwen2_moe": True, "seed_oss": getattr(theirs, "attention_bias", None)}
    assert ours.qkv_bias == has_bias.get(ours.model_type, False)
    frequencies, scale = megatron_frequencies(ours)
    expected, expected_scale = transformers_frequencies(theirs)
    assert torch.allclose(frequencies, expected, rtol=2e-6, atol=0)
    assert scale == pytest.approx(expected_scale, rel=1e-6)


def assert_same_mixture(ours, theirs):
    """By the modules that transformers builds of it."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(theirs).model.layers
    sparse = {number: layer.mlp for number, layer in enumerate(layers) if hasattr(layer.mlp, "experts")}
    assert tuple(sparse) == ours.sparse_layers
    mixture, hidden = ours.mixture, ours.hidden_size
    for block in sparse.values():
        assert block.experts.down_proj.shape == (mixture.num_experts, hidden, mixture.intermediate_size)
        assert {name: tuple(p.shape) for name, p in block.gate.named_parameters()} == {
            "weight": (mixture.num_experts, hidden)
        }
        assert block.gate.top_k == mixture.experts_per_token
        assert getattr(block.gate, "norm_topk_prob", True) == mixture.normalizes_weights
        shared = getattr(block, "shared_expert", None)
        assert (shared and shared.down_proj.weight.shape[1]) == mixture.shared_intermediate_size


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


def check_draws(folder, number, strategy=variants):
    counts = {"read": 0, "refused": 0}

    @settings(max_examples=number, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(changes):
        ours, words, theirs = read_both(folder, BASE | changes)
        if ours is None:
            counts["refused"] += 1
            assert str(folder) in words and any(key in words for key in [*changes, "rope type"]), words
            return
        counts["read"] += 1
        assert theirs is not None, "transformers refuses it"
        assert_equal(ours, theirs)

    check()
    return counts


def test_variants_are_refused_by_name_or_read_as_transformers_reads_them(tmp_path):
    counts = check_draws(tmp_path, 60)
    assert min(counts.values()) > 5, counts


def test_variants_of_mixtures_are_refused_by_name_or_read_as_transformers_reads_them(tmp_path):
    counts = check_draws(tmp_path, 60, mixture_variants)
    assert min(counts.values()) > 5, counts


def test_what_the_engine_is_told_of_rope_reads_as_the_same_model(tmp_path):
    """Every number is written out, and a factor is no whole number: what vLLM would stumble over."""
    kinds = set()
    for changes in draw(150):
        (tmp_path / "config.json").write_text(json.dumps(BASE | changes))
        try:
            hf = read_hf_config(tmp_path)
        except ModelFolderError:
            continue
        told = rope_parameters(hf)
        assert None not in told.values() and type(told.get("factor", 1.0)) is float
        keys = {key: value for key, value in (BASE | changes).items() if not key.startswith(("rope", "original"))}
        (tmp_path / "config.json").write_text(json.dumps(keys | {"rope_parameters": told}))
        assert read_hf_config(tmp_path) == hf
        kinds.add(told["rope_type"])
    assert {"default", "linear", "yarn"} <= kinds


@pytest.mark.night("300 draws in place of 60")
def test_more_variants(tmp_path):
    check_draws(tmp_path, 300)
    check_draws(tmp_path, 300, mixture_variants)


@pytest.mark.parametrize("family", sorted(families()))
def test_defaults_are_those_of_transformers(tmp_path, family):
    """A config.json with the sizes of its matrices and no other key."""
    keys = {"model_type": family} | {name: BASE[name] for name in BASE if name != "max_position_embeddings"}
    keys |= MIXTURES.get(family, {}) | ({NUM_EXPERTS[family]: 8} if family in MIXTURES else {})
    assert_equal(*read_both(tmp_path, keys)[::2])
    del keys["num_key_value_heads"]
    keys |= {"num_attention_heads": 64, "hidden_size": 64 * 128}
    assert_equal(*read_both(tmp_path, keys)[::2])


ROPES = {
    "theta of transformers 4 beside parameters of 5": {
        "rope_theta": 500000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "scaling of transformers 4 beside parameters of 5": {
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    },
    "a theta in the scaling": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2, "rope_theta": 7e4}},
    "a theta beside parameters without one": {"rope_theta": 7e4, "rope_parameters": {"rope_type": "default"}},
    "both names of the kind": {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 4.0}},
    "an empty scaling": {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    "a length beside yarn's own": {
        "original_max_position_embeddings": 128,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "yarn without its length": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn with a scale of attention": {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 0.8}},
    "yarn, DeepSeek's scales": {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0}},
}  # fmt: skip


@pytest.mark.parametrize("keys", ROPES.values(), ids=ROPES)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_rope_that_is_said_twice_or_in_part(tmp_path, family, keys):
    ours, words, theirs = read_both(tmp_path, BASE | {"model_type": family} | keys)
    assert ours is not None, words
    assert_equal(ours, theirs)
