"""All nodes' facts -> rows of one table: what is the same everywhere is one row, what isn't names the node."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from statistics import median

from megatron_nft.doctor.findings import Finding, fail, ok, warn
from megatron_nft.preflight.bandwidth import Bandwidth
from megatron_nft.preflight.facts import Facts

GIB = 1 << 30
MAX_CLOCK_SKEW_S = 1.0
"""Beyond it, logs of several nodes can't be read together, and file times mislead."""
LEAST_FREE_DISK = 2 * GIB
VERSIONS = "versions"
"""Doctor's check of the pins."""
MISSING = " is missing"
"""How it ends its line of a package that is not there at all."""
RECIPE = "recipe"
"""Name of the resolved recipe among the versions."""
SHOWN = 4
"""Differences listed of a node, and nodes listed of a row."""
SLOW_NODE_SHARE = 0.5
"""Of the median over nodes; a slower one gets a warning even where no figure is expected."""


def check_machines(facts: Mapping[str, Facts], *, pins: str = "fail") -> Iterator[Finding]:
    """What doctor finds on each node.

    Args:
        pins: "warn": packages may be of other versions than pinned, as in a site's own image.
    """
    found: dict[tuple[str, str, str, str, str], list[str]] = {}
    for node, fact in facts.items():
        for f in fact.findings:
            if pins == "warn" and f.check == VERSIONS and f.status == "FAIL" and not f.value.endswith(MISSING):
                f = replace(f, status="warn", reason=f"{f.reason}; NFT_PINS=warn lets it pass")
            if f.status != "ok":
                found.setdefault((f.status, f.check, f.value, f.reason, f.remedy), []).append(node)
    for (status, check, value, reason, remedy), nodes in found.items():
        where = f"all {len(facts)} nodes" if len(nodes) == len(facts) > 1 else short(nodes)
        yield Finding(check=check, status=status, value=f"{where}: {value}", reason=reason, remedy=remedy)
    slowest = max(facts, key=lambda node: facts[node].seconds)
    if not any(status == "FAIL" for status, *_ in found):
        yield ok(
            "machines", f"{len(facts)} nodes pass doctor; the slowest, {slowest}, took {facts[slowest].seconds:.1f} s"
        )


def check_same(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """The same versions, and the same files: what most nodes have is taken to be right."""
    for check, field, remedy in (
        ("same versions", "versions", "install the same environment there, or leave the node out: sbatch --exclude"),
        ("same files", "files", "copy model and data to a file system that all nodes see, or to each of them"),
    ):
        of: dict[str, Mapping[str, str]] = {node: getattr(fact, field) for node, fact in facts.items()}
        keys = dict.fromkeys(key for values in of.values() for key in values)
        usual = {key: Counter(v.get(key, "missing") for v in of.values()).most_common(1)[0][0] for key in keys}
        odd = {n: [k for k in keys if values.get(k, "missing") != usual[k]] for n, values in of.items()}
        if field == "versions":  # a node that can't read the recipe has been named above
            odd = {n: [k for k in names if k != RECIPE or k in of[n]] for n, names in odd.items()}
        odd = {node: names for node, names in odd.items() if names}
        for node, names in odd.items():
            listed = "; ".join(f"{n} is {of[node].get(n, 'missing')}, elsewhere {usual[n]}" for n in names[:SHOWN])
            more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield fail(check, node, listed + more, f"{remedy}={node}" if remedy.endswith("--exclude") else remedy)
        absent = sorted(key for key, value in usual.items() if value.startswith(("missing", "unreadable")))
        if absent:
            yield fail(check, short(absent), "on most nodes it is " + usual[absent[0]], remedy)
        if not odd and not absent:
            yield ok(check, f"{len(keys)} on {len(facts)} nodes")


def check_room(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Free memory and disk; doctor has failed those that are short of them."""
    memory = {node: fact.free_memory for node, fact in facts.items() if fact.free_memory is not None}
    disk = {node: fact.free_disk for node, fact in facts.items()}
    if memory:
        least = min(memory, key=memory.__getitem__)
        yield ok(
            "free memory", f"{memory[least] / GIB:.0f} GiB at least, on {least}; {_median(memory) / GIB:.0f} usually"
        )
    least = min(disk, key=disk.__getitem__)
    value = f"{disk[least] / GIB:.0f} GiB at least, on {least}, where temporary files go"
    if disk[least] < LEAST_FREE_DISK:
        yield fail("free disk", value, f"{LEAST_FREE_DISK / GIB:.0f} GiB are needed", "make room, or set TMPDIR")
    else:
        yield ok("free disk", value)


def check_gpus(gpus: Mapping[str, int], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """GPUs that Ray was told of, against those that the driver shows."""
    usual = Counter(gpus.values()).most_common(1)[0][0]
    odd = [node for node in gpus if gpus[node] != usual or facts[node].num_gpus < gpus[node]]
    for node in odd:
        value = f"{node}: Slurm gives {gpus[node]}, the driver shows {facts[node].num_gpus}; elsewhere {usual}"
        yield fail("GPUs", value, "the recipe's ranks lie on all of them", f"sbatch --exclude={node}; report the node")
    if not odd:
        yield ok("GPUs", f"{usual} on each of {len(gpus)} nodes")


def check_clocks(offsets: Mapping[str, float]) -> Iterator[Finding]:
    """Against the first node's."""
    late = {node: offset for node, offset in offsets.items() if abs(offset) > MAX_CLOCK_SKEW_S}
    for node, offset in late.items():
        reason = f"more than {MAX_CLOCK_SKEW_S:g} s: logs and file times mislead"
        yield warn("clocks", f"{node}: {offset:+.1f} s", reason, "have NTP started on it")
    if not late:
        yield ok("clocks", f"within {max(map(abs, offsets.values()), default=0.0) * 1000:.0f} ms")


def check_verdicts(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Known answers, graded on every node."""
    wrong = {node: fact.verdict for node, fact in facts.items() if fact.verdict}
    for node, why in wrong.items():
        yield fail("verdicts", node, f"grading is broken: {why}", "check the installation of math-verify there")
    if not wrong:
        yield ok("verdicts", f"known answers graded on {len(facts)} nodes")


def check_bandwidth(measured: Mapping[str, Bandwidth], *, within_gb_s: float, between_gb_s: float) -> Iterator[Finding]:
    """All-reduce against what the site expects; 0 expects nothing, and compares nodes with each other."""
    within = {node: each.within for node, each in measured.items() if each.within is not None}
    between = {node: max(each.between.values()) for node, each in measured.items() if each.between}
    yield from _bandwidths("within nodes", within, within_gb_s, "one rank a node")
    yield from _bandwidths("between nodes", between, between_gb_s, "one node")
    if len(measured) > 1:
        yield ok("all ranks", f"one all-reduce takes {max(m.all_s for m in measured.values()) * 1000:.1f} ms")


def _bandwidths(check: str, of: Mapping[str, float], expected: float, nobody: str) -> Iterator[Finding]:
    if not of:
        yield ok(check, f"{nobody}: nothing to measure")
        return
    usual = _median(of)
    slow = {node: rate for node, rate in of.items() if rate < expected}
    odd = {node: rate for node, rate in of.items() if rate < SLOW_NODE_SHARE * usual and node not in slow}
    for node, rate in slow.items():
        reason = f"{expected:g} GB/s are expected (site.env), and {usual:.2f} is the median"
        remedy = f"sbatch --exclude={node}" if len(slow) < len(of) else "check NFT_INTERFACE, and NCCL_DEBUG=INFO's log"
        yield fail(check, f"{node}: {rate:.2f} GB/s", reason, remedy)
    for node, rate in odd.items():
        reason = f"less than {SLOW_NODE_SHARE:.0%} of the median, {usual:.2f} GB/s"
        yield warn(check, f"{node}: {rate:.2f} GB/s", reason, f"if it stays: sbatch --exclude={node}")
    if not slow and not odd:
        least = min(of, key=of.__getitem__)
        yield ok(check, f"{of[least]:.2f} GB/s at least ({least}), {usual:.2f} usually")


def short(names: list[str]) -> str:
    """A few of many."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def attempt(check: str, node: str, error: str) -> Finding:
    """A node that could not be asked."""
    return fail(check, node, error, f"look at its log folder, or leave it out: sbatch --exclude={node}")


def _median(of: Mapping[str, float]) -> float:
    return median(of.values())
