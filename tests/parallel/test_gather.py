"""Shards of real ranks become whole tensors on the first rank or on all: tensor-parallel ones, fused ones, experts'."""

import pytest
import torch

from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel


def gathered(rank, master, tp, etp, ep, everywhere):
    """Whether what this rank gets equals what all shards were cut from; None where it gets nothing."""
    torch.set_num_threads(1)
    import torch.distributed as dist

    from megatron_nft.weights.gather import gather_bucket
    from megatron_nft.weights.plan import plan_weights
    from tests.unit.weights.test_gather import MIXTURE, mixture_names, places_of, shards_at

    places = places_of(tp, etp, ep, ranks=4)
    dist.init_process_group("gloo", init_method=f"tcp://{master}", rank=rank, world_size=4)
    whole: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)
    held = [shards_at(place, MIXTURE, mixture_names(ep), whole) for place in places]  # the same numbers on every rank
    plan = plan_weights(held[rank], MIXTURE, places=places, dtype=torch.float32, bucket_bytes=1 << 12)
    assert len(plan.buckets) > 3 and set(plan.hf_names) == set(whole)
    fills, equal = everywhere or rank == 0, []
    for bucket in plan.buckets:
        tensors = bucket.empty_tensors(torch.float32, "cpu") if fills else None
        gather_bucket(bucket, plan.places, tensors, dtype=torch.float32, group=dist.group.WORLD, everywhere=everywhere)
        equal += [torch.equal(tensor, whole[name]) for name, tensor in (tensors or {}).items()]
    dist.destroy_process_group()
    return all(equal) if fills else None


@pytest.mark.parametrize(
    ("tp", "etp", "ep", "everywhere"),
    [(4, 2, 2, False), (4, 2, 2, True), (4, 1, 4, False), (2, 2, 2, False), (1, 1, 4, False)],
)
def test_four_ranks(tp, etp, ep, everywhere):
    """Where experts' ranks are more than the rest's, the first of them have the rest."""
    answers = run_ranks(4, gathered, tp, etp, ep, everywhere)
    assert answers == ([True] * 4 if everywhere else [True, None, None, None])
