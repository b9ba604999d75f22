"""What Ray needs: folders and addresses that are none, each a line with its remedy; a run ends with that line."""

import os
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_nft.cluster import placement
from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.config import load_config
from megatron_nft.doctor.machine import Machine
from megatron_nft.doctor.ray_needs import LONGEST_SOCKET, SOCKET, check_ray

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "shm").mkdir()
    return replace(
        Machine.this_one(),
        environment={},
        proc=tmp_path / "proc",
        shared_memory=tmp_path / "shm",
        disk_usage=lambda path: (100 * GIB, 50 * GIB, 50 * GIB),
    )


def finding(machine, **environment):
    (found,) = check_ray(replace(machine, environment=environment))
    return found


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_healthy_machine(machine, address):
    assert finding(machine).value == "a local one, in /tmp/ray"
    for nowhere in ("", " ", "local"):
        assert finding(machine, RAY_ADDRESS=nowhere).status == "ok"
    assert finding(machine, RAY_ADDRESS=address).value == f"RAY_ADDRESS={address}"
    assert finding(machine, RAY_ADDRESS=f"[::ffff:127.0.0.1]:{address.rpartition(':')[2]}").status == "ok"


def test_the_length_of_its_sockets(machine):
    """To the byte, as Ray's own check has it."""
    room = LONGEST_SOCKET - len(SOCKET.format(pid=os.getpid()))
    for folder, status in (
        ("/" + "x" * (room - 1), "ok"),
        ("/" + "x" * room, "FAIL"),
        ("/" + "ü" * (room // 2 + 1), "FAIL"),
    ):
        found = finding(machine, TMPDIR=folder)
        assert found.status == status, found
    assert f"another path of at most {room} bytes" in found.remedy
    assert finding(machine, TMPDIR=folder, RAY_TMPDIR="/tmp").status == "ok", "Ray's own variable comes first"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RAY_TMPDIR": "relative"}, "Ray needs a path from the root"),
        ({"RAY_TMPDIR": ""}, "Ray needs a path from the root"),
        ({"TMPDIR": "/proc/x"}, "/proc can't be written"),
        ({"TMPDIR": "/dev/null"}, "/dev/null is a file"),
        ({"RAY_ADDRESS": "auto", "RAY_TMPDIR": "/var/tmp"}, "no Ray runs on this machine"),  # nor has one run there
        ({"RAY_ADDRESS": f"{'a' * 70}:1"}, "nobody answers there: "),
        ({"RAY_ADDRESS": "node:²"}, "it is no HOST:PORT"),
        ({"RAY_ADDRESS": "127.0.0.1:9"}, "nobody answers there: Connection refused"),
        ({"RAY_ADDRESS": "no.such.host.invalid:6379"}, "nobody answers there: "),
        ({"RAY_ADDRESS": "node01"}, "it is no HOST:PORT"),
        ({"RAY_ADDRESS": "node01:port"}, "it is no HOST:PORT"),
        ({"RAY_ADDRESS": ":6379"}, "it is no HOST:PORT"),
        ({"RAY_ADDRESS": "node01:99999"}, "it is no HOST:PORT"),
        ({"RAY_ADDRESS": "ray://node01:10001"}, "not a client of it"),
    ],
)
def test_what_will_not_do(machine, environment, reason):
    found = finding(machine, RAY_TMPDIR="/nowhere_in_proc") if not environment else finding(machine, **environment)
    assert found.status == "FAIL" and reason in found.reason and found.remedy and "\n" not in found.reason


def test_full_disks_and_no_shared_memory(machine, tmp_path):
    full = replace(machine, disk_usage=lambda path: (100 * GIB, 100 * GIB, 1 << 20))
    assert finding(full).status == "FAIL" and "1 MiB are free" in finding(full).reason
    nearly = replace(machine, disk_usage=lambda path: (100 * GIB, 97 * GIB, 3 * GIB))
    assert finding(nearly).status == "warn" and "more than 95% full" in finding(nearly).reason
    without = replace(machine, shared_memory=tmp_path / "none")
    assert finding(without).status == "FAIL" and "no folder that can be written" in finding(without).reason


def test_auto_is_the_ray_that_runs_here(machine, address, tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(address)
    environment = {"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path)}
    assert finding(machine, **environment).value == f"RAY_ADDRESS=auto ({address})"
    (machine.proc / "17").mkdir()
    (machine.proc / "17/cmdline").write_bytes(b"/x/raylet\0--gcs-address=127.0.0.1:9\0")
    assert "nobody answers there" in finding(machine, **environment).reason
    assert "(127.0.0.1:9)" in finding(machine, **environment).value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TMPDIR", "/tmp/" + "x" * 103, "and 107 is the most; export RAY_TMPDIR=/tmp"),
        ("RAY_ADDRESS", "127.0.0.1:9", "nobody answers there: Connection refused; start that cluster, or unset"),
    ],
)
def test_a_run_ends_with_the_line(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    config = load_config(Path("launch/recipes/quickstart.toml"))
    with pytest.raises(ClusterError, match="Ray can't be used: ") as caught, placement.ray_cluster(config):
        pass
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_link_to_nothing(machine):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own are longer than Ray's sockets allow
        (link := Path(folder) / "gone").symlink_to(f"{folder}/none")
        found = finding(machine, RAY_TMPDIR=str(link))
    assert (found.status, found.reason) == ("FAIL", f"{link} is a link to nothing")
