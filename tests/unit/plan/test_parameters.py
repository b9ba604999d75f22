"""Buffers and shards by hand; tests/parallel/test_plan.py compares them with Megatron's own."""

from megatron_nft.config import ActorConfig
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.plan.buckets import AUTOMATIC_BUCKETS, LARGEST_BUCKET_BYTES, SMALLEST_BUCKET_BYTES, TENSOR_ALIGNMENT
from megatron_nft.plan.parameters import (
    Parameter,
    lay_out_buffer,
    layers_of_chunk,
    layers_of_rank,
    parameters_of_rank,
    shard_elements,
)
from megatron_nft.weights import plan, wire


def sizes(*elements):
    return [Parameter(str(number), n) for number, n in enumerate(elements)]


def test_parameters_lie_in_reverse_order_at_multiples_of_64():
    (bucket,) = lay_out_buffer(sizes(10, 100, 65), ranks=1, bucket_size=None)
    assert bucket.spans == ((0, 65), (128, 228), (256, 266))
    assert bucket.elements == 384


def test_a_buffer_ends_at_a_multiple_of_128_and_of_the_ranks():
    assert lay_out_buffer(sizes(10), ranks=3, bucket_size=None)[0].elements == 384


def test_buckets_close_when_they_are_full_and_tied_embeddings_stand_alone():
    assert [b.elements for b in lay_out_buffer(sizes(64, 64, 64), ranks=1, bucket_size=100)] == [128, 128]
    tied = [Parameter("embedding", 64, is_tied=True), *sizes(64)]
    assert [b.spans for b in lay_out_buffer(tied, ranks=1, bucket_size=None)] == [((0, 64),), ((0, 64),)]


def test_shards_are_equal_parts_without_the_padding():
    buckets = lay_out_buffer(sizes(300), ranks=2, bucket_size=None)  # 384 elements, 192 a rank
    assert shard_elements(buckets, 2) == [192, 108]
    assert sum(shard_elements(lay_out_buffer(sizes(1000, 17, 333), ranks=6, bucket_size=None), 6)) == 1350


def test_32b_by_hand(models):
    hf = read_hf_config(models["32b"])
    layer = 5120 * (40 + 8 + 8 + 40) * 128 + 3 * 5120 * 27648 + 2 * 5120 + (40 + 16) * 128
    whole = 64 * layer + 2 * 152064 * 5120 + 5120
    one = parameters_of_rank(hf, ActorConfig(), 0)
    assert one.elements == whole == 32_763_876_352
    assert one.weight_bytes(2) == 2 * whole and one.gradient_bytes == 4 * whole
    assert one.optimizer_bytes(2) == 12 * whole and one.optimizer_bytes(4) == 8 * whole


def test_30b_a3b_by_hand(models):
    hf = read_hf_config(models["30b_a3b"])
    experts = 128 * 3 * 2048 * 768
    layer = 2048 * (32 + 4 + 4 + 32) * 128 + 2 * 2048 + 2 * 128 + 128 * 2048
    whole = 48 * (layer + experts) + 2 * 151936 * 2048 + 2048
    assert parameters_of_rank(hf, ActorConfig(), 0).elements == whole == 30_532_122_624
    spread = parameters_of_rank(hf, ActorConfig(dp=16, ep=8), 0)
    assert spread.expert_buffer_elements == 48 * experts // 8, "whole tiles: no padding"
    assert spread.elements == spread.buffer_elements + 48 * experts // 8
    assert len(spread.shards) == 16 and spread.expert_shards == (48 * experts // 16,) * 2
    together = parameters_of_rank(hf, ActorConfig(dp=16), 0)
    assert together.expert_buffer_elements == 0 and together.buffer_elements == whole, "one buffer for all"
    sharded = parameters_of_rank(hf, ActorConfig(tp=2, dp=4, ep=4, etp=2, sequence_parallel=True), 0)
    assert sharded.expert_buffer_elements == spread.expert_buffer_elements and len(sharded.expert_shards) == 1


def test_layers_of_virtual_stages():
    actor = ActorConfig(pp=3, vpp=2, num_layers_in_last_pipeline_stage=2)
    chunks = [list(layers_of_chunk(actor, 10, pp_rank, stage)) for stage in range(2) for pp_rank in range(3)]
    assert chunks == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]


def test_all_ranks_together_hold_the_model(models):
    hf = read_hf_config(models["math_7b"])
    whole = parameters_of_rank(hf, ActorConfig(), 0).elements
    for layout in ({"pp": 4}, {"pp": 2, "vpp": 7}, {"pp": 2, "num_layers_in_last_pipeline_stage": 12}, {"dp": 7}):
        actor = ActorConfig(**layout)
        ranks = [parameters_of_rank(hf, actor, pp_rank) for pp_rank in range(actor.pp)]
        assert sum(r.elements for r in ranks) == whole
        assert all(sum(r.shards) == r.elements for r in ranks)


def test_uneven_stages():
    actor = ActorConfig(pp=4, num_layers_in_first_pipeline_stage=5, num_layers_in_last_pipeline_stage=3)
    assert [layers_of_rank(actor, 20, pp_rank) for pp_rank in range(4)] == [5, 6, 6, 3]


def test_what_stands_twice_is_the_same():
    """plan imports no torch, and so no weights."""
    assert TENSOR_ALIGNMENT == wire.ALIGNMENT
    assert (AUTOMATIC_BUCKETS, SMALLEST_BUCKET_BYTES, LARGEST_BUCKET_BYTES) == (
        plan.AUTOMATIC_BUCKETS,
        plan.SMALLEST_BUCKET_BYTES,
        plan.LARGEST_BUCKET_BYTES,
    )
