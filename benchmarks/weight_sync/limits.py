"""What a weight sync is measured against: this machine's memcpy and gloo, and mbridge's export.

    python -m benchmarks.weight_sync.limits memcpy|gloo|mbridge BYTES MODEL

prints GB/s as JSON. Called by benchmarks/weight_sync/run.py, a fresh process each.
"""

import json
import sys
import time
import warnings


def memcpy(num_bytes: int) -> dict[str, float]:
    """One thread, between two arrays that exist."""
    import numpy as np

    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    np.copyto(target, source)
    start = time.perf_counter()
    np.copyto(target, source)
    return {"memcpy": num_bytes / 1e9 / (time.perf_counter() - start)}


def gloo(rank: int, master: str, num_bytes: int) -> dict[str, float]:
    """Each collective once warm: the bytes of the whole model that arrive per second."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{master}", rank=rank, world_size=2)
    half = torch.ones(num_bytes // 2, dtype=torch.uint8)
    whole = torch.ones(num_bytes, dtype=torch.uint8)
    halves = [torch.zeros_like(half) for _ in range(2)]
    calls = {
        "gloo broadcast": lambda: dist.broadcast(whole, 0),
        "gloo gather": lambda: dist.gather(half, halves if rank == 0 else None, 0),
        "gloo send": lambda: dist.recv(half, 1) if rank == 0 else dist.send(half, 0),
        "gloo all_gather": lambda: dist.all_gather(halves, half),
    }
    rates = {}
    for name, call in calls.items():
        small = half[:1024]
        dist.broadcast(small, 0)
        dist.barrier()
        call()
        dist.barrier()
        start = time.perf_counter()
        call()
        dist.barrier()
        rates[name] = num_bytes / 1e9 / (time.perf_counter() - start)
    dist.destroy_process_group()
    return rates


def mbridge(rank: int, master: str, num_bytes: int, model: str) -> dict[str, float]:
    """mbridge's export at tp=2 of the same shards: all HF tensors, on both ranks, one parameter after the other."""
    import torch
    import torch.distributed as dist
    from mbridge import AutoBridge

    from megatron_nft.actor.hf_weights import load_hf_weights
    from megatron_nft.actor.model import build_chunks
    from megatron_nft.actor.topology import init_topology
    from megatron_nft.config import ActorConfig
    from megatron_nft.families.hf_config import read_hf_config

    torch.set_num_threads(1)
    actor, hf = ActorConfig(tp=2, precision="bf16"), read_hf_config(model)
    topology = init_topology(actor, rank=rank, master=master, device="cpu", seed=1)
    chunks = build_chunks(hf, actor, topology)
    load_hf_weights(chunks, model, hf, topology)
    bridge = AutoBridge.from_pretrained(model)
    # Its tables have TransformerEngine's names; local layers have norms of their own.
    bridge._OTHER_MAPPING = {"input_layernorm.weight": ["model.layers.{layer_number}.input_layernorm.weight"]}
    after = {"pre_mlp_layernorm.weight": ["model.layers.{layer_number}.post_attention_layernorm.weight"]}
    bridge._MLP_MAPPING = bridge._MLP_MAPPING | after
    seconds = 0.0
    for _ in range(2):  # the first one is warm-up
        dist.barrier()
        start = time.perf_counter()
        exported = sum(tensor.numel() * tensor.element_size() for _, tensor in bridge.export_weights(chunks))
        dist.barrier()
        seconds = time.perf_counter() - start
    return {"mbridge export, tp 2": exported / 1e9 / seconds}


def main() -> None:
    """The command line."""
    what, num_bytes, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    warnings.filterwarnings("ignore")
    from benchmarks.weight_sync import limits  # not __main__: forked ranks look its functions up by name
    from tests.parallel.ranks import run_ranks

    if what == "memcpy":
        rates = memcpy(num_bytes)
    elif what == "gloo":
        rates = run_ranks(2, limits.gloo, num_bytes)[0]
    else:
        rates = run_ranks(2, limits.mbridge, num_bytes, model)[0]
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
