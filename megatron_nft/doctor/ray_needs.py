"""What Ray needs of a machine, asked before it starts: an address that answers, or a temporary folder that will do.

Variables and folders come in, findings go out. cluster/placement.py asks before ray.init, whose own words come after up
to half a minute, as tracebacks; doctor asks before a run. Starts nothing; a given address is connected to once.
"""

import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_nft.doctor.findings import Finding, fail, ok, warn
from megatron_nft.doctor.machine import Machine

LOCAL_ADDRESSES = ("", "local")
"""Values of RAY_ADDRESS that name no cluster: Ray is started here."""
LONGEST_SOCKET = 107
"""Bytes of a socket's path (sun_path of unix(7), less its end)."""
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest one that Ray makes in its temporary folder."""
LEAST_TMP = 256 << 20
"""Ray's logs; a node of it doesn't come up on a full disk."""
FULL_SHARE = 0.95
"""Of a disk, beyond which Ray keeps no object there that memory has no room for."""
ANSWERS_WITHIN_S = 3.0


def is_local(environment: Mapping[str, str]) -> bool:
    """Whether a run starts its own Ray."""
    return environment.get("RAY_ADDRESS", "").strip() in LOCAL_ADDRESSES


def check_ray(machine: Machine) -> Iterator[Finding]:
    """The cluster that RAY_ADDRESS names, or the folder of a local one."""
    if is_local(machine.environment):
        yield from _check_folder(machine)
    else:
        yield from _check_address(machine, machine.environment["RAY_ADDRESS"].strip())


def temporary_folder(machine: Machine) -> tuple[str, str]:
    """Ray's, without the "ray" that it adds, and the variable that says so."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if name in machine.environment:
            return machine.environment[name], f"{name}={machine.environment[name]}"
    return "/tmp", "/tmp"


def _check_folder(machine: Machine) -> Iterator[Finding]:
    folder, value = temporary_folder(machine)
    remedy = "export RAY_TMPDIR=FOLDER, a short path to a local disk with room"
    length = len((folder + SOCKET.format(pid=os.getpid())).encode())
    if length > LONGEST_SOCKET:
        most = LONGEST_SOCKET - length + len(folder.encode())
        reason = f"Ray's sockets in it would have paths of {length} bytes, and {LONGEST_SOCKET} is the most"
        yield fail("Ray", value, reason, f"export RAY_TMPDIR=/tmp, or another path of at most {most} bytes")
        return
    if not folder.startswith("/"):
        yield fail("Ray", value, "Ray needs a path from the root", remedy)
        return
    ray_folder = Path(folder) / "ray"
    place = next(path for path in (ray_folder, *ray_folder.parents) if path.exists() or path.is_symlink())
    if reason := _why_not_writable(place):
        yield fail("Ray", value, f"{place} {reason}", remedy)
        return
    if not machine.shared_memory.is_dir() or not os.access(machine.shared_memory, os.W_OK):
        reason = f"{machine.shared_memory}, where Ray keeps its objects, is no folder that can be written"
        yield fail("Ray", value, reason, f"mount a tmpfs at {machine.shared_memory}")
        return
    total, _, free = machine.disk_usage(place)
    if free < LEAST_TMP:
        yield fail("Ray", value, f"{free >> 20} MiB are free, and Ray's logs take {LEAST_TMP >> 20}", remedy)
    elif total and free < (1 - FULL_SHARE) * total:
        reason = f"its disk is more than {FULL_SHARE:.0%} full: Ray keeps no object there that memory has no room for"
        yield warn("Ray", value, reason, remedy)
    else:
        yield ok("Ray", f"a local one, in {ray_folder}")


def _why_not_writable(place: Path) -> str:
    if not place.is_dir():
        return "is a file" if place.exists() else "is a link to nothing"
    try:
        with tempfile.TemporaryFile(dir=place, prefix="megatron_nft_") as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return f"can't be written: {error.strerror}"
    return ""


def _check_address(machine: Machine, address: str) -> Iterator[Finding]:
    value, remedy = f"RAY_ADDRESS={address}", "start that cluster, or unset RAY_ADDRESS for a local one"
    if address == "auto":
        if (found := _running(machine)) is None:
            yield fail("Ray", value, "no Ray runs on this machine", f"ray start --head; {remedy}")
            return
        address, value = found, f"{value} ({found})"
    if "://" in address:
        reason = "the driver must be one of the cluster's processes, not a client of it"
        yield fail("Ray", value, reason, "run it on a node of the cluster, with RAY_ADDRESS=HOST:PORT")
        return
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        yield fail("Ray", value, "it is no HOST:PORT", f"give the head's, such as node01:6379; {remedy}")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_WITHIN_S).close()
    except (OSError, UnicodeError) as error:  # the latter of a name that none can have
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield fail("Ray", value, f"nobody answers there: {reason}", remedy)
    else:
        yield ok("Ray", value)


def _running(machine: Machine) -> str | None:
    """Where a Ray of this machine is, as Ray itself looks for it: a process's arguments, or the last `ray start`'s."""
    for arguments in machine.proc.glob("[0-9]*/cmdline"):
        try:
            words = arguments.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "raylet" in words and (found := re.search(r"--gcs-address=([^\0\s]+)", words)):
            return found[1]
    try:
        return (Path(temporary_folder(machine)[0]) / "ray/ray_current_cluster").read_text().strip() or None
    except OSError:
        return None
