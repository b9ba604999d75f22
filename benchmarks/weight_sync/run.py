"""Weight sync, end to end: a Qwen2.5-0.5B-shaped actor at tp=2 into a running vLLM engine, in bf16, on a CPU.

    python benchmarks/weight_sync/run.py            # about 10 minutes; needs `pip install mbridge==0.15.1 --no-deps`

One run holds the actor (2 Ray processes) and the engine, and syncs again and again. Between two syncs the machine's
limits and mbridge's export are measured in processes of their own, so that every round has all of them: memcpy of as
many bytes, gloo's broadcast, gather and all_gather between two ranks (benchmarks/weight_sync/limits.py).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SHAPE = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 32_768, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}  # fmt: skip
TOKENIZER = Path("tests/assets/quickstart/model")


def make_model(folder: Path) -> None:
    """An HF folder of that shape with random bf16 weights, and a small tokenizer, which this benchmark never uses."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", **SHAPE, dtype="bfloat16")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in TOKENIZER.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())


def limits(what: str, num_bytes: int, model: Path) -> dict[str, float]:
    """Seconds of one reference, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.weight_sync.limits", what, str(num_bytes), str(model)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=400)
    return json.loads(done.stdout.splitlines()[-1])


def resident() -> int:
    """Proportional set size of all processes below this one."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--syncs", type=int, default=20, help="syncs in a row, for the growth of memory")
    parser.add_argument("--bucket-mib", type=int, nargs="+", default=[64])
    parser.add_argument("--no-mbridge", action="store_true")
    arguments = parser.parse_args()
    from megatron_nft.cluster.placement import ray_cluster
    from megatron_nft.cluster.workers import Actors, EngineGroup
    from megatron_nft.config import load_config
    from megatron_nft.weights.sync import sync_weights

    whats = ["memcpy", "gloo", *([] if arguments.no_mbridge else ["mbridge"])]
    rows: dict[str, list[float]] = {}

    def note(name: str, rate: float) -> None:
        rows.setdefault(name, []).append(rate)
        print(f"{name}: {rate:.2f} GB/s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        make_model(model)
        for bucket_mib in arguments.bucket_mib:
            overrides = [
                f'model.path="{model}"', "actor.tp=2", "actor.precision=bf16", "rollout.dtype=bfloat16",
                f"weights.bucket_mib={bucket_mib}", "rollout.kv_cache_gib=0.25",
            ]  # fmt: skip
            config = load_config("launch/recipes/quickstart.toml", overrides)
            with ray_cluster(config) as placement:
                actors, engines = Actors(config, placement), EngineGroup(config, placement)
                for start in (actors.begin_build(), engines.begin_build()):
                    start.wait()
                sync_weights(actors, engines, 1)  # warms up
                for number in range(arguments.rounds):
                    begun = time.perf_counter()
                    metrics = sync_weights(actors, engines, 2 + number)
                    seconds, num_bytes = time.perf_counter() - begun, int(metrics["weights/bytes"])
                    note(f"**sync**, buckets of {bucket_mib} MiB", num_bytes / 1e9 / seconds)
                    phases = {name: round(value, 3) for name, value in metrics.items() if name.endswith("_s")}
                    print(phases, file=sys.stderr, flush=True)
                    for what in whats if bucket_mib == arguments.bucket_mib[0] else []:
                        for name, rate in limits(what, num_bytes, model).items():
                            note(name, rate)
                if bucket_mib == arguments.bucket_mib[0]:
                    before = resident()
                    for number in range(arguments.syncs):
                        sync_weights(actors, engines, 100 + number)
                    growth = (resident() - before) / 2**20
                    print(f"memory after {arguments.syncs} more syncs: {growth:+.0f} MiB", file=sys.stderr, flush=True)
                    rows["growth MiB"] = [growth]
    print(f"{num_bytes / 1e9:.3f} GB\n\n| | GB/s, median (lowest - highest) |\n|---|---|")
    for name, rates in rows.items():
        print(f"| {name} | {statistics.median(rates):.2f} ({min(rates):.2f} - {max(rates):.2f}) |")


if __name__ == "__main__":
    main()
