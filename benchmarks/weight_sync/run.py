"""Weight sync, end to end: a Qwen2.5-0.5B-shaped actor at tp=2 into a running vLLM engine, in bf16, on a CPU.

    python -m benchmarks.weight_sync.run            # about 8 minutes; needs `pip install --no-deps mbridge==0.15.1`

One run holds the actor (2 Ray processes) and the engine, and syncs again and again, from the call until the engine can
generate. Between two syncs the machine's limits and mbridge's export are measured in processes of their own, so that
every round has all of them (benchmarks/weight_sync/limits.py). Then the memory: what a sync takes beyond what the
processes had, and what is left of it after many.
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
    """GB/s of some references, in processes of their own."""
    command = [sys.executable, "-m", "benchmarks.weight_sync.limits", what, str(num_bytes), str(model)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=400)
    return json.loads(done.stdout.splitlines()[-1])


class Memory:
    """Of one process: how far its resident memory rises above where it is now."""

    def __init__(self, pid: int) -> None:
        self.status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the high-water mark starts again from here
        self.before = self._mib("VmRSS")

    def rise_mib(self) -> float:
        return self._mib("VmHWM") - self.before

    def _mib(self, field: str) -> float:
        line = next(line for line in self.status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024


def resident_mib() -> float:
    """Proportional set size of all processes below this one: shared pages count once."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--syncs", type=int, default=20, help="syncs in a row, for the growth of memory")
    parser.add_argument("--bucket-mib", type=int, default=64)
    parser.add_argument("--carrier", default="shared_memory", choices=["shared_memory", "collective"])
    parser.add_argument("--model", type=Path, help="an HF folder of this shape, if there is one already")
    parser.add_argument("--no-mbridge", action="store_true")
    arguments = parser.parse_args()
    import ray

    from megatron_nft.cluster.fleet import Fleet
    from megatron_nft.cluster.placement import ray_cluster
    from megatron_nft.cluster.ranks import Actors
    from megatron_nft.config import load_config
    from megatron_nft.run.parts import Processes, begin_build
    from megatron_nft.weights.sync import sync_weights

    rows: dict[str, list[float]] = {}
    whats = ["memcpy", "gloo", *([] if arguments.no_mbridge else ["mbridge"])]

    def note(name: str, rate: float) -> None:
        rows.setdefault(name, []).append(rate)
        print(f"{name}: {rate:.2f} GB/s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or Path(scratch) / "model"
        if arguments.model is None:
            make_model(model)
        overrides = [
            f'model.path="{model}"', "actor.tp=2", "actor.precision=bf16", "rollout.dtype=bfloat16",
            f"weights.bucket_mib={arguments.bucket_mib}", f"weights.carrier={arguments.carrier}",
            "rollout.kv_cache_gib=0.25",
        ]  # fmt: skip
        config = load_config("launch/recipes/quickstart.toml", overrides)
        with ray_cluster(config) as placement:
            actors, engines = Actors(config, placement), Fleet(config, placement)
            for start in begin_build(Processes(actors=actors, engines=engines), shared=False):
                start.wait()
            processes = actors._ranks | engines._engines
            pids = {name: ray.get(p.__ray_call__.remote(lambda _: os.getpid())) for name, p in processes.items()}
            memory = {name: Memory(pid) for name, pid in pids.items()}
            sync_weights(actors, engines, 1)
            for name, of_process in memory.items():
                print(f"first sync, {name}: +{of_process.rise_mib():.0f} MiB", flush=True)
            for _ in range(4):
                sync_weights(actors, engines, 2)
            for number in range(arguments.rounds):
                sync_weights(actors, engines, 2)  # every contestant has its second go measured
                begun = time.perf_counter()
                metrics = sync_weights(actors, engines, 3 + number)
                seconds, num_bytes = time.perf_counter() - begun, int(metrics["weights/bytes"])
                note("**sync, until the engine can generate**", num_bytes / 1e9 / seconds)
                phases = {name: round(value, 3) for name, value in metrics.items() if name.endswith("_s")}
                print(phases, file=sys.stderr, flush=True)
                note("of it, all but vLLM's loading", num_bytes / 1e9 / (seconds - metrics["weights/load_s"]))
                for what in whats:
                    for name, rate in limits(what, num_bytes, model).items():
                        note(name, rate)
            sync_weights(actors, engines, 99)
            before = resident_mib()
            memory = {name: Memory(pid) for name, pid in pids.items()}
            for number in range(arguments.syncs):
                sync_weights(actors, engines, 100 + number)
            for name, of_process in memory.items():
                print(f"{arguments.syncs} more syncs, {name}: at most +{of_process.rise_mib():.0f} MiB", flush=True)
            print(f"all processes after {arguments.syncs} more syncs: {resident_mib() - before:+.0f} MiB", flush=True)
    print(f"\n{num_bytes / 1e9:.3f} GB\n\n| | GB/s, median (lowest - highest) |\n|---|---|")
    for name, rates in rows.items():
        print(f"| {name} | {statistics.median(rates):.2f} ({min(rates):.2f} - {max(rates):.2f}) |")


if __name__ == "__main__":
    main()
