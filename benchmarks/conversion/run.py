"""GB/s and memory of checkpoint_tools' converters, beside reading and copying the same files.

    python -m benchmarks.conversion.run [--scratch DIR] [--rounds 2]      # 15 GB of disk

Makes two random models (Qwen2.5-0.5B's shape, and 4 GB in files of 1 GB), then takes turns: a plain read of the model's
files, a copy of them brought to the disk, HF -> Megatron, Megatron -> HF. Every sample is a fresh process. Prints a
markdown table of medians; ends with status 1 if a round trip is not bitwise or memory goes beyond its bound.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151_936, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "max_position_embeddings": 32_768, "dtype": "bfloat16",
}  # fmt: skip
MODELS = {
    "0.5B": QWEN | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "4 GB": QWEN | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 32, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""0.5B: Qwen2.5-0.5B. 4 GB: 32 of Qwen2.5-1.5B's layers, with an output layer of its own."""
SHARD_BYTES = 1_000_000_000
WAYS = ("read", "copy", "hf_to_megatron", "megatron_to_hf")
MEMORY_BOUND = 1 << 30
"""Peak memory above the largest tensor, bytes."""


def make_model(folder: Path, config: dict) -> None:
    """Random numbers under the names and shapes of this config."""
    import torch

    from checkpoint_tools.safetensors_writer import SafetensorsWriter
    from megatron_nft.families.hf_config import read_hf_config
    from megatron_nft.families.parameters import parameters
    from megatron_nft.weights.export import finish_hf_folder

    base = folder.with_name(folder.name + "-config")
    base.mkdir()
    folder.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    shapes = {n: s for p in parameters(read_hf_config(base)) for n, s in p.hf_shapes.items()}
    numbers = (0.02 * torch.randn((1 << 24) - 3)).bfloat16()  # an odd period: no two rows alike
    with SafetensorsWriter(folder, {n: (torch.bfloat16, s) for n, s in shapes.items()}, SHARD_BYTES) as writer:
        for name, shape in shapes.items():
            count = torch.Size(shape).numel()
            tensor = numbers.repeat(-(-count // len(numbers)))[:count].view(shape)
            writer.write(name, 0, tensor)
        finish_hf_folder(folder, base, [writer.weight_map])
    shutil.rmtree(base)


def sample(way: str, source: Path, out: Path) -> dict[str, float]:
    """One sample, in this process: seconds, peak memory, and GB of weights."""
    from checkpoint_tools import hf_to_megatron, megatron_to_hf

    files = [f for f in source.rglob("*") if f.suffix in (".safetensors", ".distcp")]
    size = sum(f.stat().st_size for f in files)
    start = time.perf_counter()
    if way == "read":
        buffer = bytearray(16 << 20)
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    elif way == "copy":
        out.mkdir()
        for path in files:
            shutil.copyfile(path, out / path.name)
            with (out / path.name).open("rb") as file:
                os.fsync(file.fileno())
    else:
        convert = {"hf_to_megatron": hf_to_megatron.convert, "megatron_to_hf": megatron_to_hf.convert}[way]
        convert(source, out)
    seconds = time.perf_counter() - start
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
    return {"seconds": seconds, "bytes": size, "peak": int(line.split()[1]) << 10}


def measure(name: str, scratch: Path, rounds: int) -> bool:
    """Prints a model's rows; whether its round trip was bitwise and memory stayed within the bound."""
    from math import prod

    from checkpoint_tools.verify import compare_folders
    from megatron_nft.weights.hf_tensors import HFTensors

    model, megatron, back = (scratch / folder for folder in ("model", "megatron", "back"))
    make_model(model, MODELS[name])
    tensors = HFTensors(model)
    specs = [tensors.spec(tensor) for tensor in tensors.names]
    largest = max(prod(shape) * dtype.itemsize for dtype, shape in specs)
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            source, out = {"megatron_to_hf": (megatron, back), "hf_to_megatron": (model, megatron)}.get(
                way, (model, scratch / "copy")
            )
            shutil.rmtree(out, ignore_errors=True)
            command = [sys.executable, __file__, "--sample", way, str(source), str(out)]
            environment = os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=600)
            samples[way].append(last := json.loads(done.stdout.splitlines()[-1]))
            speed = last["bytes"] / last["seconds"] / 1e9
            print(
                f"{name}, round {number + 1}, {way}: {speed:.2f} GB/s, load {os.getloadavg()[0]:.1f}", file=sys.stderr
            )
            shutil.rmtree(scratch / "copy", ignore_errors=True)
    fits = True
    for way, runs in samples.items():
        speeds = [run["bytes"] / run["seconds"] / 1e9 for run in runs]
        of_copy = [
            copy["seconds"] / run["seconds"] * run["bytes"] / copy["bytes"]
            for run, copy in zip(runs, samples["copy"], strict=True)
        ]
        peak = max(run["peak"] for run in runs)
        above = (peak - largest) / 2**30
        fits &= way not in ("hf_to_megatron", "megatron_to_hf") or peak <= largest + MEMORY_BOUND
        spread = f"{statistics.median(speeds):.2f} ({min(speeds):.2f} - {max(speeds):.2f})"
        memory = f"{peak / 2**30:.2f} | {above:+.2f}"
        share = f"{statistics.median(of_copy):.2f}"
        print(f"| {name} | {way} | {runs[0]['bytes'] / 1e9:.2f} | {spread} | {share} | {memory} |")
    check = compare_folders(model, back)
    print(f"{check}; largest tensor {largest / 2**30:.2f} GiB", file=sys.stderr)
    return fits and check.passed


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="default: the temporary folder")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sample", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sample:
        way, source, out = arguments.sample
        print(json.dumps(sample(way, Path(source), Path(out))))
        return
    print("| model | way | GB | GB/s (lowest - highest) | of copy | peak memory, GiB | less the largest tensor |")
    print("|---|---|---|---|---|---|---|", flush=True)
    fits = True
    for name in arguments.models:
        with tempfile.TemporaryDirectory(prefix="conversion-", dir=arguments.scratch) as scratch:
            fits &= measure(name, Path(scratch), arguments.rounds)
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    main()
