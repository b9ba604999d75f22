"""The actor's training speed on a CPU beside a plain transformers loop and TRL's trainer. Prints a results page.

    python -m benchmarks.train_step.run [--rounds 9] [--cases equal spread] [--sequences 256] > results_DATE.md

All contestants are up at the same time and train one update each in turn, round after round; a ratio is the median of
the ratios within the rounds. Exit status 1 if they don't compute the same loss and gradient norm.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.train_step.case import CASES, NUM_SEQUENCES, make_sequences, write_model
from benchmarks.train_step.contestant import Contestant, Entry

ENTRIES = (
    Entry("floor", "floor", 2048),
    Entry("TRL", "trl", 32),
    Entry("ours", "ours", 2048),
    Entry("ours, tp=2", "ours", 2048, tp=2),
    Entry("ours, pp=2", "ours", 2048, pp=2),
)
TOLERANCE = 1e-3
"""Largest relative difference of losses and gradient norms."""


class Load:
    """What other programs take of the processors while a contestant works."""

    def __init__(self) -> None:
        self.time, self.all, self.ours = time.perf_counter(), _busy_s(), _own_s()

    def others(self) -> float:
        """Processors busy with anything but the benchmark since this object was made, on average."""
        seconds = time.perf_counter() - self.time
        return max(0.0, (_busy_s() - self.all - (_own_s() - self.ours)) / seconds)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def _own_s() -> float:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(t.user + t.system for t in (p.cpu_times() for p in processes))


def run_case(
    case: str, entries: list[Entry], rounds: int, num_sequences: int, model_folder: str, threads: int
) -> dict[str, list]:
    """Samples of every contestant: seconds, loss, gradient norm, load before, other programs' processors during."""
    contestants = []
    samples: dict[str, list[dict[str, float]]] = {e.name: [] for e in entries}
    try:
        for entry in entries:
            contestants.append(Contestant(entry, case, num_sequences, model_folder, threads))
            samples[entry.name].append(contestants[-1].step())  # builds, and warms up
        for number in range(rounds):
            for contestant in contestants:
                load, before = os.getloadavg()[0], Load()
                sample = contestant.step()
                sample |= {"load": load, "others": before.others()}
                samples[contestant.entry.name].append(sample)
                words = f"{case}, round {number + 1}/{rounds}: {contestant.entry.name} {sample['seconds']:.3f} s"
                print(f"{words}, load {load:.1f}, others {sample['others']:.2f} cores", file=sys.stderr, flush=True)
    finally:
        for contestant in contestants:
            contestant.stop()
    return samples


def page(case: str, samples: dict[str, list], num_sequences: int) -> tuple[list[str], bool]:
    """The case's part of the results page, and whether all contestants computed the same."""
    sequences = make_sequences(case, num_sequences)
    tokens, longest = sum(s.num_tokens for s in sequences), max(s.num_tokens for s in sequences)
    lines = [
        f"## {case}: {CASES[case]}",
        "",
        f"{len(sequences)} sequences, {tokens} tokens, {sum(s.num_answer_tokens for s in sequences)} of them answers; "
        f"{len(sequences) * longest} with the padding of [rows, longest].",
        "",
        "| | median s | least - most | CPU s | tokens/s | ours / it | loss | gradient norm |",
        "|" + " --- |" * 8,
    ]
    first = {name: taken[0] for name, taken in samples.items()}
    timed = {name: [s["seconds"] for s in taken[1:]] for name, taken in samples.items()}
    for name, seconds in timed.items():
        ratio = statistics.median(other / mine for other, mine in zip(seconds, timed["ours"], strict=True))
        lines.append(
            f"| {name} | {statistics.median(seconds):.3f} | {min(seconds):.3f} - {max(seconds):.3f} | "
            f"{statistics.median(s['cpu_s'] for s in samples[name][1:]):.2f} | "
            f"{tokens / statistics.median(seconds):,.0f} | {ratio:.2f} | "
            f"{first[name]['loss']:.7f} | {first[name]['grad_norm']:.6f} |"
        )
    same = all(
        abs(told[key] - first["floor"][key]) <= TOLERANCE * abs(first["floor"][key])
        for told in first.values()
        for key in ("loss", "grad_norm")
    )
    verdict = "the same" if same else "NOT THE SAME: the times compare different work"
    lines += ["", f"Loss and gradient norm of the first update: {verdict} (within {TOLERANCE:g} of the floor's).", ""]
    lines += ["Samples in order, s (load average before it; processors busy with other programs during it):", ""]
    for name, taken in samples.items():
        each = ", ".join(f"{s['seconds']:.3f} ({s['load']:.1f}; {s['others']:.2f})" for s in taken[1:])
        lines.append(f"- {name}: {each}")
    return [*lines, ""], same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed updates of each contestant")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sequences", type=int, default=NUM_SEQUENCES, help="fewer for a trial; a multiple of 32")
    parser.add_argument("--threads", type=int, default=2, help="of each contestant; divided among its ranks")
    parser.add_argument("--only", nargs="*", choices=[e.name for e in ENTRIES], help="these, beside floor and ours")
    parser.add_argument("--batch", type=int, help="tokens of a forward pass of floor and ours (default: 2048)")
    arguments = parser.parse_args()
    entries = [e for e in ENTRIES if arguments.only is None or e.name in ("floor", "ours", *arguments.only)]
    if arguments.batch:
        entries = [e if e.program == "trl" else Entry(e.name, e.program, arguments.batch, e.tp, e.pp) for e in entries]
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "megatron-core", "transformers", "trl"))
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    lines = [
        f"# A training step on a CPU, {time.strftime('%Y-%m-%d')}",
        "",
        f"Machine: {os.cpu_count()} cores ({processor}), {psutil.virtual_memory().total / 2**30:.0f} GiB, no GPU. "
        f"Python {platform.python_version()}, {packages}. Command:",
        "",
        "```",
        " ".join(["python -m benchmarks.train_step.run", *sys.argv[1:]]),
        "```",
        "",
        f"Qwen2 of 4.36 M parameters, fp32; threads of each contestant, all its ranks together: {arguments.threads}; "
        f"{arguments.rounds} rounds in turn. `CPU s`: of all threads, waiting ones included as far as they spin. "
        "`ours / it`: our speed as a multiple of that line's, median over rounds.",
        "",
    ]
    all_same = True
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for case in arguments.cases:
            samples = run_case(case, entries, arguments.rounds, arguments.sequences, folder, arguments.threads)
            part, same = page(case, samples, arguments.sequences)
            lines += part
            all_same &= same
    print("\n".join(lines))
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
