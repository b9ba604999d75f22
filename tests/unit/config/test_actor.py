"""Megatron's number formats, overlaps and offloading: which go together."""

from megatron_nft.config import load_config
from tests.unit.config.conftest import refusal


def test_fp8_is_for_cuda_and_its_bf16_layers_for_fp8(recipe):
    config = load_config(recipe, ["actor.precision=fp8-blockwise", "actor.num_layers_at_end_in_bf16=1"])
    assert config.actor.num_layers_at_end_in_bf16 == 1
    message = refusal(recipe, "actor.precision=fp8-blockwise", "cluster.device=cpu")
    assert 'actor.precision = "fp8-blockwise" needs a CUDA device' in message
    assert "are for FP8" in refusal(recipe, "actor.precision=bf16", "actor.num_layers_at_end_in_bf16=1")
    message = refusal(recipe, "actor.precision=fp8-delayed", "actor.num_layers_at_end_in_bf16=1")
    assert "fp8-delayed keeps no layers in bf16" in message


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
