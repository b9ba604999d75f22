"""A bucket arrives as it was sent, and a wrong one is refused with what is wrong."""

import json
from dataclasses import replace

import pytest
import torch

from megatron_nft.weights.shared_memory import SharedMemoryReceiver
from megatron_nft.weights.wire import ALIGNMENT, BucketManifest, TensorSpec, WireError, lay_out, views
from tests.buckets import Buckets

TENSORS = {
    "model.norm.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "lm_head.weight": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
}


def test_tensors_lie_one_after_the_other_aligned():
    table = lay_out({"a": (torch.float32, (33,)), "b": (torch.bfloat16, (2, 2)), "c": (torch.float32, ())})
    assert [spec.offset for spec in table.values()] == [0, 192, 256]
    assert all(spec.offset % ALIGNMENT == 0 for spec in table.values())
    buffer = torch.zeros(320, dtype=torch.uint8)
    for number, tensor in enumerate(views(buffer, table).values(), start=1):
        tensor.fill_(number)
    assert [tensor.unique().tolist() for tensor in views(buffer, table).values()] == [[1], [2], [3]]


def test_round_trip_keeps_names_dtypes_shapes_and_bits():
    manifest = Buckets().write(TENSORS)
    assert manifest.num_bytes == 6 * 4 + 2 * 2
    read = SharedMemoryReceiver().receive(manifest)
    assert list(read) == list(TENSORS)
    for name, sent in TENSORS.items():
        assert read[name].dtype == sent.dtype
        assert torch.equal(read[name], sent)


def test_manifest_travels_as_json():
    manifest = Buckets().write(TENSORS, checksum=True)
    assert BucketManifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_a_buffer_that_is_written_again_is_seen_without_a_new_mapping():
    buckets, receiver = Buckets(), SharedMemoryReceiver()
    for number in range(4):
        read = receiver.receive(buckets.write({"w": torch.full((1000,), float(number))}))
        assert read["w"].eq(number).all()
    assert len(receiver._mapped) == 2


def test_buffers_of_a_sender_that_has_ended_are_given_back():
    """The ranks are started again while the engine lives: the memory of those before has no other holder."""
    first, receiver = Buckets(), SharedMemoryReceiver()
    for _ in range(2):
        receiver.receive(first.write(TENSORS))
    assert len(receiver._mapped) == 2
    first.close()
    second = Buckets()
    read = [receiver.receive(second.write(TENSORS)) for _ in range(2)]
    assert all(torch.equal(tensors["lm_head.weight"], TENSORS["lm_head.weight"]) for tensors in read)
    assert len(receiver._mapped) == 2


def test_a_manifest_of_another_bucket_is_refused():
    buckets = Buckets()
    manifest = buckets.write(TENSORS)
    longer = {**manifest.tensors, "model.embed": TensorSpec("bfloat16", (100, 100), 128)}
    with pytest.raises(WireError, match=r"model\.embed ends at byte 20128 of a buffer of 128 bytes"):
        SharedMemoryReceiver().receive(replace(manifest, tensors=longer))


def test_a_flipped_bit_shows_where_checksums_are_asked_for():
    buckets = Buckets()
    manifest = buckets.write(TENSORS, checksum=True)
    assert torch.equal(SharedMemoryReceiver().receive(manifest)["lm_head.weight"], TENSORS["lm_head.weight"])
    buckets.buffer(manifest)[3] ^= 1
    with pytest.raises(WireError, match=r"bucket 0 of stage 0 has checksum .* its bytes changed on the way"):
        SharedMemoryReceiver().receive(manifest)
    assert SharedMemoryReceiver().receive(replace(manifest, checksum=None))


def test_a_sender_that_has_ended_is_named():
    buckets = Buckets()
    manifest = buckets.write(TENSORS)
    buckets.close()
    with pytest.raises(WireError, match=r"cannot map bucket 0 of stage 0 .* its sender has ended"):
        SharedMemoryReceiver().receive(manifest)


@pytest.mark.parametrize(
    "wrong",
    [{"path": "x"}, {"tensors": []}, {"checksum": "1"}, {"place": "here"}],
    ids=str,
)
def test_wrong_manifest_is_refused(wrong):
    plain = Buckets().write(TENSORS).to_dict()
    with pytest.raises(WireError, match="bucket manifest"):
        BucketManifest.from_dict(plain | wrong)
    with pytest.raises(WireError, match="bucket manifest"):
        BucketManifest.from_dict({})
