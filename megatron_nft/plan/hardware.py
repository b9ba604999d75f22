"""Machines: what one device, its links and its node have, and which share of that a program gets.

hardware.toml (or a file of one's own) comes in, a `Machine` goes out. Bytes and bytes/s here are decimal only where the
name of a TOML key says so (gb, tb); GiB are 2^30.
"""

import tomllib
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).with_name("hardware.toml")
SHIPPED_NAMES = ("H100", "H200", "A100", "B200")
"""Of GPUs, as torch's names of devices have them in themselves."""
GIB = 1 << 30


class HardwareError(ValueError):
    """A hardware table is missing or wrong."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Shares of a peak (0 to 1), and times and memory that no peak explains: hardware.toml has their sources."""

    matmul: float
    attention: float
    memory: float
    nvlink: float
    network: float
    pcie: float
    to_host_gb_s: float
    from_host_gb_s: float
    collective_us: float
    decode_layer_us: float
    decode_step_ms: float
    decode_answer_us: float
    load_tensor_us: float
    sync_call_ms: float
    sync_fixed_s: float
    verdicts_per_s: float
    imbalance: float
    device_gib: float
    fragmentation: float
    engine_workspace_gib: float
    engine_asleep_gib: float
    process_gib: float
    storage_gb_s: float
    node_storage_gb_s: float
    process_start_s: float
    import_s: float
    group_rank_ms: float
    engine_start_s: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One kind of device (a GPU; on a CPU a core), its node, and its efficiency."""

    name: str
    memory_gib: float
    bf16_tflops: float
    fp8_tflops: float
    memory_tb_s: float
    nvlink_gb_s: float
    network_gb_s: float
    pcie_gb_s: float
    gpus_per_node: int
    host_memory_gib: float
    efficiency: Efficiency

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * GIB

    @property
    def bytes_per_s(self) -> float:
        """Of the device's memory, as reached."""
        return self.memory_tb_s * 1e12 * self.efficiency.memory

    @property
    def pcie_bytes_per_s(self) -> float:
        return self.pcie_gb_s * 1e9 * self.efficiency.pcie

    def host_round_trip_s(self, size: float) -> float:
        """Seconds for so many bytes to ordinary host memory and back: never faster than PCIe."""
        e = self.efficiency
        rates = (min(rate * 1e9, self.pcie_bytes_per_s) for rate in (e.to_host_gb_s, e.from_host_gb_s))
        return sum(size / rate for rate in rates)

    def matmul_flops(self, *, fp8: bool = False) -> float:
        """FLOP/s of matrix products, as reached."""
        return (self.fp8_tflops if fp8 else self.bf16_tflops) * 1e12 * self.efficiency.matmul

    @property
    def attention_flops(self) -> float:
        return self.bf16_tflops * 1e12 * self.efficiency.attention

    def link_bytes_per_s(self, size: int, stride: int) -> float:
        """Of one member of a group of `size` ranks, `stride` apart, ranks filling nodes in order.

        A group inside a node has NVLink. One that leaves it has the NICs of its members in a node, together.
        """
        nvlink = self.nvlink_gb_s * 1e9 * self.efficiency.nvlink
        if (size - 1) * stride < self.gpus_per_node:
            return nvlink
        members = max(1, self.gpus_per_node // stride)
        return min(nvlink, self.network_gb_s * 1e9 * self.efficiency.network * members)

    def link_name(self, size: int, stride: int) -> str:
        """Which links `link_bytes_per_s` takes for such a group."""
        return "within nodes" if (size - 1) * stride < self.gpus_per_node else "between nodes"


def load_machine(name: str, file: str | Path | None = None) -> Machine:
    """The table `name`, from `file` if it has it, else from those shipped.

    Raises:
        HardwareError: no such table or file, an unknown, missing or impossible key.
    """
    shipped = tomllib.loads(SHIPPED.read_text())
    own: dict[str, Any] = {}
    if file is not None:
        try:
            own = tomllib.loads(Path(file).read_text())
        except FileNotFoundError:
            raise HardwareError(f"no hardware file at {file}; tables of its form: {SHIPPED}") from None
        except tomllib.TOMLDecodeError as error:
            raise HardwareError(f"{file} is not valid TOML: {error}") from None
    tables = {**shipped, **own}
    efficiency = {**shipped["efficiency"], **own.get("efficiency", {})}
    names = sorted(set(tables) - {"efficiency"})
    if name not in names:
        raise HardwareError(f"no hardware {name!r}; known: {', '.join(names)}; others by --hardware FILE")
    _check(Efficiency, efficiency, "efficiency", set())
    _check(Machine, tables[name], name, {"name", "efficiency"})
    return Machine(name=name, **tables[name], efficiency=Efficiency(**efficiency))


def _check(kind: type, table: dict[str, Any], name: str, given: set[str]) -> None:
    wanted = {field.name for field in fields(kind)} - set(given)
    if unknown := sorted(set(table) - wanted):
        raise HardwareError(f"hardware table [{name}]: unknown key {unknown[0]!r}; known: {', '.join(sorted(wanted))}")
    if missing := sorted(wanted - set(table)):
        raise HardwareError(f"hardware table [{name}]: {missing[0]} is missing; {SHIPPED} says what it means")
    for key, value in table.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value < inf
            or (not value and key != "fp8_tflops")
        ):
            raise HardwareError(f"hardware table [{name}]: {key} = {value!r}; it must be a number above 0")
