"""Log-probs of one microbatch's labels, forward and backward: in blocks (actor/logprobs.py) beside whole logits.

    python -m benchmarks.logprobs.run            # the published table: 8 minutes on two cores

Every sample is a fresh process: the model's last hidden states and output layer are made, one pass warms up, the mark
of the process's highest memory is set back, and a second pass is timed. Ways take turns; medians and pairwise ratios
are printed as a markdown table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

WAYS = ("megatron", "torch", "blocks 128", "blocks 32")
"""megatron: whole logits and Megatron-Core's vocab_parallel_cross_entropy, which keeps the softmax; torch: whole logits
and torch.log_softmax. blocks N: label_logprobs with logits_mib = N; 128 is the default."""
ORACLE = "megatron"


def measure(way: str, tokens: int, vocab_size: int, hidden_size: int, dtype: str) -> dict[str, float]:
    """One sample, in this process: seconds, bytes of the peak above what was there before, and checksums."""
    import torch
    import torch.distributed as dist

    from megatron_nft.actor.cpu import adapt_to_cpu

    adapt_to_cpu()
    from megatron.core import parallel_state

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    torch.manual_seed(0)
    number = getattr(torch, dtype)
    hidden = torch.randn(tokens, hidden_size).to(number).requires_grad_()
    weight = (torch.randn(vocab_size, hidden_size) / hidden_size**0.5).to(number).requires_grad_()
    labels = torch.randint(0, vocab_size, (tokens,))
    upstream = torch.randn(tokens)
    logprobs_of = _ways(way, vocab_size)

    def forward_backward() -> torch.Tensor:
        hidden.grad = weight.grad = None
        logprobs = logprobs_of(hidden, weight, labels)
        logprobs.backward(upstream)
        return logprobs.detach()

    forward_backward()
    hidden.grad = weight.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident now
    before = _status("VmRSS")
    start = time.perf_counter()
    logprobs = forward_backward()
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "bytes": _status("VmHWM") - before,
        "logprobs": logprobs.double().sum().item(),
        "grad_hidden": hidden.grad.double().norm().item(),
        "grad_weight": weight.grad.double().norm().item(),
    }


def _ways(way: str, vocab_size: int) -> Callable:
    import torch
    import torch.distributed as dist
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from megatron_nft.actor.logprobs import label_logprobs

    if way == "megatron":
        return lambda hidden, weight, labels: (
            -vocab_parallel_cross_entropy((hidden @ weight.T).float()[:, None], labels[:, None])[:, 0]
        )
    if way == "torch":
        return lambda hidden, weight, labels: torch.log_softmax((hidden @ weight.T).float(), -1).gather(
            1, labels[:, None]
        )[:, 0]
    setting = {
        "temperature": 1.0,
        "vocab_size": vocab_size,
        "group": dist.group.WORLD,
        "logits_bytes": int(way.split()[1]) << 20,
    }
    return lambda hidden, weight, labels: label_logprobs(hidden, weight, labels, **setting)[0]


def _status(key: str) -> int:
    """Bytes, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) << 10


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab-size", type=int, default=151_936, help="Qwen2.5's by default")
    parser.add_argument("--hidden-size", type=int, default=896, help="that of Qwen2.5-0.5B by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--sample", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = (arguments.tokens, arguments.vocab_size, arguments.hidden_size, arguments.dtype)
    if arguments.sample:
        print(json.dumps(measure(arguments.sample, *size)))
        return
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(arguments.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--sample", way]
            environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count()), "PYTHONPATH": "."}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=600)
            samples[way].append(json.loads(done.stdout.splitlines()[-1]))
            last, load = samples[way][-1], os.getloadavg()[0]
            print(
                f"round {number + 1} {way}: {last['seconds']:.2f} s, {last['bytes'] / 2**30:.2f} GiB, load {load:.1f}",
                file=sys.stderr,
            )
    print(f"{arguments.tokens} tokens, vocabulary {arguments.vocab_size}, hidden {arguments.hidden_size}, {size[-1]}\n")
    print("| way | extra memory | of megatron's | forward + backward | of megatron's (pairs) | sum of log-probs |")
    print("|---|---|---|---|---|---|")
    for way, runs in samples.items():
        memory = statistics.median(r["bytes"] for r in runs)
        share = memory / statistics.median(r["bytes"] for r in samples[ORACLE])
        seconds = statistics.median(r["seconds"] for r in runs)
        ratios = [r["seconds"] / o["seconds"] for r, o in zip(runs, samples[ORACLE], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        total = runs[0]["logprobs"]
        print(f"| {way} | {memory / 2**30:.2f} GiB | {share:.2f} | {seconds:.2f} s | {spread} | {total:.6g} |")
        for value in ("logprobs", "grad_hidden", "grad_weight"):
            mine, expected = runs[0][value], samples[ORACLE][0][value]
            bound = 1e-5 if arguments.dtype == "float32" else 1e-2
            if abs(mine - expected) > bound * abs(expected):
                sys.exit(f"{way}: {value} is {mine}, {ORACLE}'s {expected}")


if __name__ == "__main__":
    main()
