"""Whose a folder is: one process's at a time; a dead one's is taken over, a living one's refused by its name."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from megatron_nft.config import RecipeError
from megatron_nft.observe import owner
from megatron_nft.observe.owner import FolderInUse, Owner, OwnerLost, Who

HOLD = """
import sys, time
from pathlib import Path
from megatron_nft.observe.owner import Owner
Owner.take(Path(sys.argv[1]))
print("mine", flush=True)
time.sleep(60)
"""


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(owner, "BEAT_S", 0.05)
    monkeypatch.setattr(owner, "DEAD_S", 1.0)
    monkeypatch.setattr(owner, "LOOK_S", 0.02)


def elsewhere(folder, number=1, **changes):
    """An owner on another machine."""
    who = replace(Who.me(), host="n7", machine="another", token="theirs", **changes)
    (folder / owner.FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / owner.FOLDER / str(number)).write_text(json.dumps(asdict(who)))
    return folder / owner.FOLDER / str(number)


def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    return process


def test_a_second_one_is_refused_by_name_until_the_first_has_left(tmp_path):
    first = Owner.take(tmp_path / "new" / "run")
    with pytest.raises(FolderInUse, match=rf"in use by process {os.getpid()} on .*; wait for its end.*run.name"):
        Owner.take(tmp_path / "new" / "run")
    first.leave()
    said = []
    with Owner.take(tmp_path / "new" / "run", said.append) as second:
        second.check()
    assert said == []
    assert [path.name for path in (tmp_path / "new" / "run" / owner.FOLDER).iterdir()] == ["2"]


@pytest.mark.parametrize("is_reaped", [True, False])
def test_a_killed_one_on_this_machine_is_followed_at_once(tmp_path, is_reaped):
    process, said = holder(tmp_path), []
    with pytest.raises(FolderInUse, match=f"process {process.pid} on "):
        Owner.take(tmp_path)
    process.kill()
    if is_reaped:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and its number still taken
    Owner.take(tmp_path, said.append).leave()
    process.wait()
    assert len(said) == 1 and f"taken over from a process that has ended: process {process.pid} on " in said[0]


def test_a_process_id_that_is_another_process_by_now_is_no_owner(tmp_path):
    path = elsewhere(tmp_path)
    path.write_text(json.dumps(asdict(replace(Who.me(), token="theirs", started="17"))))
    Owner.take(tmp_path).leave()


def test_on_another_machine_a_beat_refuses_and_silence_is_death(tmp_path, fast):
    path, said, is_over = elsewhere(tmp_path, job="12@alpha"), [], threading.Event()

    def beat():
        while not is_over.wait(0.1):
            os.utime(path)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(FolderInUse, match=r"on n7, Slurm job 12, since .*or scancel 12"):
            Owner.take(tmp_path, said.append)
    finally:
        is_over.set()
        beating.join()
    start = time.monotonic()
    Owner.take(tmp_path, said.append).leave()
    assert 0.5 < time.monotonic() - start < 5
    assert "another machine" in said[0] and "looking whether it lives" in said[0]
    assert "taken over from process" in said[-1] and "it is dead" in said[-1]


def test_one_long_silent_is_not_waited_for(tmp_path):
    path, said = elsewhere(tmp_path), []
    os.utime(path, (1e9, 1e9))
    Owner.take(tmp_path, said.append).leave()
    assert len(said) == 1 and "it is dead" in said[0]


def test_a_requeued_job_follows_its_earlier_attempt_at_once(tmp_path, monkeypatch):
    elsewhere(tmp_path, job="12@alpha", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "alpha")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    said = []
    Owner.take(tmp_path, said.append).leave()
    assert len(said) == 1 and "taken over from this job's attempt 0" in said[0]


def test_one_that_was_taken_for_dead_writes_no_more(tmp_path, fast):
    mine = Owner.take(tmp_path)
    elsewhere(tmp_path, number=2)
    with pytest.raises(OwnerLost, match=r"has been taken over by process .* on n7"):
        mine.check()
    mine.leave()
    assert (tmp_path / owner.FOLDER / "2").stat().st_mtime > 1e9, "its end is not the other's"


def test_an_owner_says_that_it_lives_and_survives_a_tidy_user(tmp_path, fast):
    mine = Owner.take(tmp_path)
    path = tmp_path / owner.FOLDER / "1"
    os.utime(path, (1e9, 1e9))
    time.sleep(0.3)
    assert path.stat().st_mtime > 1e9
    path.unlink()
    time.sleep(0.3)
    assert path.exists()
    with pytest.raises(FolderInUse):
        Owner.take(tmp_path)
    mine.leave()


def test_what_killed_ones_have_left_on_their_way_is_forgotten(tmp_path):
    (tmp_path / owner.FOLDER).mkdir()
    for name, heard in (("old.new", 1e9), ("young.new", time.time())):
        (tmp_path / owner.FOLDER / name).write_text("")
        os.utime(tmp_path / owner.FOLDER / name, (heard, heard))
    with Owner.take(tmp_path):
        assert sorted(path.name for path in (tmp_path / owner.FOLDER).iterdir()) == ["1", "young.new"]


def test_without_links_a_name_is_made_exclusively(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with Owner.take(tmp_path), pytest.raises(FolderInUse):
        Owner.take(tmp_path)


def test_what_nobody_can_read_is_dead_once_it_is_silent(tmp_path, fast):
    (tmp_path / owner.FOLDER).mkdir()
    (tmp_path / owner.FOLDER / "4").write_text("{")
    Owner.take(tmp_path).leave()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"can't write to the folder .*file/run: .*run.dir, --out"):
        Owner.take(tmp_path / "file" / "run")


def race(folder, num):
    """Processes that start at the same instant: pid -> what became of each, while the winner lives."""
    gate_out, gate_in = os.pipe()
    told_out, told_in = os.pipe()
    children = []
    for _ in range(num):
        if (pid := os.fork()) == 0:
            os.close(gate_in)
            os.read(gate_out, 1)  # until the parent closes its end
            try:
                Owner.take(folder)
                said = "won"
            except BaseException as error:
                said = str(error)
            os.write(told_in, f"{os.getpid()} {said}\n".encode())
            time.sleep(60)
        children.append(pid)
    os.close(gate_out)
    os.close(gate_in)
    told = b""
    while told.count(b"\n") < num:
        told += os.read(told_out, 1 << 16)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(told_out)
    os.close(told_in)
    return dict(line.split(" ", 1) for line in told.decode().splitlines())


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_start_at_once_one_wins(tmp_path, links, monkeypatch):
    """Again and again, after winners that were killed; all others are refused, with the winner's name."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
        monkeypatch.setattr(owner, "DEAD_S", 2.0)
    for _ in range(4 if links else 2):
        said = race(tmp_path, 12)
        winners = [pid for pid, line in said.items() if line == "won"]
        assert len(winners) == 1, said
        if links:
            assert sum(f"in use by process {winners[0]} on " in line for line in said.values()) == 11, said
