"""Saves that are killed, and checkpoints that are damaged afterwards: the last whole one is used, nothing is deleted.

The driver's Checkpoints with one real Megatron rank in its process: what the actor's verbs do is real, too.
"""

import json
import os
import random
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from megatron_nft.actor import checkpoint
from megatron_nft.actor.manifest import CheckpointError, damages, read_manifest
from megatron_nft.run import checkpoint_folder
from tests.parallel.ranks import run_ranks
from tests.parallel.test_layouts import stored_sequences

pytestmark = pytest.mark.parallel
SAVE_S = 1.5
"""In which several updates and saves take place."""


class OneRank:
    """`Actors` with a single rank, in this process."""

    def __init__(self, config, master):
        from megatron_nft.actor.worker import Worker

        self.worker = Worker(config, rank=0, master=master)
        self.load = lambda folder: self.worker.load(str(folder))

    def begin_save(self, folder, step, policy_version):
        self.worker.begin_save(str(folder), step, policy_version)

    def is_saved(self):
        is_written, error = self.worker.save_state()
        if error:
            raise CheckpointError(error)
        return is_written

    def damages(self, folder):
        return self.worker.damages(str(folder), list(read_manifest(folder)))

    def update(self):
        from megatron_nft.data.packing import pack

        batch = pack([stored_sequences()[0][:4]], num_updates=1, dp=1, tokens_per_microbatch=1000)
        self.worker.train_step([batch.updates[0][0]])


def recipe(folder, *overrides):
    from megatron_nft.config import load_config

    run = [f"run.dir={json.dumps(str(folder))}", "run.name=run", "run.overwrite=false", "actor.tp=1"]
    return load_config("launch/recipes/quickstart.toml", [*run, "checkpoint.every=1", *overrides])


def progress(step):
    from megatron_nft.run.checkpoints import Progress

    return Progress(step=step, policy_version=step, sampling={"mixed_share": 0.5}, minutes=0.0)


def write_whole(path, text):
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def save_for_ever(folder, master):
    """Goes on from the newest checkpoint, and saves step after step; each has as many updates as its number says."""
    from megatron_nft.run.checkpoints import Checkpoints

    torch.set_num_threads(1)
    config = recipe(folder)
    actors = OneRank(config, master)
    checkpoints = Checkpoints(config, actors, lambda line: (folder / "announced").write_text(line))
    restored = checkpoints.restore()
    step = restored.step if restored else 0
    assert actors.worker.schedule.num_steps == step, "weights of one step and progress of another"
    while True:
        step += 1
        actors.update()
        write_whole(folder / "begun", str(step))
        checkpoints.begin(progress(step))
        checkpoints.finish()
        write_whole(folder / "published", str(step))


def saves_since(start, run_dir):
    with suppress(FileNotFoundError):  # it was deleted, or published, just now
        return any(p.stat().st_mtime > start for p in run_dir.glob("checkpoints/step_*.partial"))
    return False


def kill_often(rank, master, folder, kills):
    """Kills at moments spread over SAVE_S, in some order.

    Of each: the step that was being saved, the last whose publication had been told of, the newest one found, and
    whether it cut a save.
    """
    from megatron_nft.actor.topology import free_address

    folder, seen, draw = Path(folder), [], random.Random(7)
    for moment in draw.sample(range(kills), kills):
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(folder, free_address())
            except BaseException as error:
                (folder / "failed").write_text(repr(error))
            os._exit(1)
        start = time.time()
        while not saves_since(start, folder / "run"):
            assert time.time() - start < 60, "no save has begun"
            time.sleep(0.002)
        time.sleep(SAVE_S * (moment + draw.random()) / kills)
        while moment % 2 and not saves_since(start, folder / "run"):  # between two saves for every other kill only
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not (folder / "failed").exists(), (folder / "failed").read_text()
        assert not (folder / "announced").exists() or "damaged" not in (folder / "announced").read_text()
        left = list((folder / "run").glob("checkpoints/step_*.partial"))
        said = checkpoint_folder.complete_left_behind(folder / "run")  # as the next start does
        assert len(said) == len(left) and not list((folder / "run").glob("checkpoints/step_*.partial"))
        newest = checkpoint_folder.published(folder / "run")[:1]
        latest = folder / "run" / "checkpoints" / "latest"
        if newest:
            manifest = read_manifest(newest[0])
            assert damages(newest[0], manifest, manifest) == []
        if latest.is_symlink():
            assert read_manifest(latest), "latest points at a whole one"
        promised = int((folder / "published").read_text()) if (folder / "published").exists() else 0
        cut = bool(left)
        begun = int((folder / "begun").read_text())
        seen.append((begun, promised, checkpoint_folder.step_of(newest[0]) if newest else 0, cut))
    return seen


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.night("moments closer to each other"))])
def test_killed_at_many_moments_of_a_save(tmp_path, kills):
    (seen,) = run_ranks(1, kill_often, str(tmp_path), kills, timeout_s=500.0)
    held = all(max(promised, begun - 1) <= newest <= begun for begun, promised, newest, _ in seen)
    assert len(seen) == kills and held, f"begun, promised, newest, cut: {seen}"
    assert sum(cut for *_, cut in seen) > kills // 3, "most kills came in the middle of a save"
    assert seen[-1][2] >= 3, "every attempt went on from the last"
    kept = {
        p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if not p.name.endswith((".partial", ".deleting"))
    }
    assert len(kept - {"latest", ".latest.partial"}) <= 3, "older ones are deleted"


def damage_every_file(rank, master, folder):
    """Of each file of the newest checkpoint, damaged: what was announced, and the step that was gone back to."""
    torch.set_num_threads(1)
    from megatron_nft.run.checkpoints import Checkpoints

    folder, lines, found = Path(folder), [], {}
    config = recipe(folder)
    actors = OneRank(config, master)
    checkpoints = Checkpoints(config, actors, lines.append)
    for step in (1, 2):
        actors.update()
        checkpoints.begin(progress(step))
        checkpoints.finish()
    newest = checkpoint_folder.step_folder(config.run_dir, 2)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    for path in files:
        whole = path.read_bytes()
        for how in ("flipped", "cut", "gone"):
            damaged = bytearray(whole)
            damaged[len(whole) // 3] ^= 1
            path.write_bytes(damaged if how == "flipped" else whole[: len(whole) // 2])
            if how == "gone":
                path.unlink()
            lines.clear()
            before = {p: p.stat().st_size for p in newest.rglob("*")}
            step = checkpoints.restore().step
            assert {p: p.stat().st_size for p in newest.rglob("*")} == before
            found[str(path.relative_to(newest)), how] = (step, list(lines))
            path.write_bytes(whole)
    lines.clear()
    assert checkpoints.restore().step == 2, "whole again"
    both = [checkpoint_folder.step_folder(config.run_dir, step) / ".metadata" for step in (1, 2)]
    for path in both:
        path.write_bytes(b"")
    try:
        checkpoints.restore()
    except CheckpointError as error:
        found["all", "cut"] = (None, [str(error)])
    return found


def test_damage_to_any_file_is_named_and_the_checkpoint_before_it_used(tmp_path):
    (found,) = run_ranks(1, damage_every_file, str(tmp_path))
    message = found.pop(("all", "cut"))[1][0]
    assert "no checkpoint of" in message and "is whole" in message and 'run.overwrite="all"' in message
    assert {".metadata", "__0_0.distcp", "run.json", "hf/config.json", "manifest.json"} <= {name for name, _ in found}
    for (name, how), (step, lines) in found.items():
        assert step == 1, (name, how)
        assert f"/step_2/{name}: " in lines[0], (name, how, lines)
        assert "is not used" in lines[1] and "nothing of it was deleted" in lines[1]


def fill_the_disk(rank, master, folder):
    """A save whose files can't be written to their end, between two that can."""
    torch.set_num_threads(1)
    from megatron_nft.run.checkpoints import Checkpoints

    lines, config, there = [], recipe(folder), []
    actors = OneRank(config, master)
    checkpoints = Checkpoints(config, actors, lines.append)
    actors.update()
    for step in (1, 2, 3):
        limit = 1 << 20 if step == 2 else resource.RLIM_INFINITY  # bytes a file may have, as a quota would say
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        checkpoints.begin(progress(step))
        checkpoints.finish()
        there.append(sorted(p.name for p in (config.run_dir / "checkpoints").iterdir()))
    return lines, there


def test_a_disk_that_takes_no_more_costs_a_checkpoint_and_not_the_run(tmp_path):
    ((lines, there),) = run_ranks(1, fill_the_disk, str(tmp_path))
    assert len(lines) == 1 and "step 2: no checkpoint was saved" in lines[0] and "File too large" in lines[0]
    assert there == [["latest", "step_1"], ["latest", "step_1"], ["latest", "step_1", "step_3"]]


def publish(rank, master, folder):
    """When checkpoints have their names, though nobody asks for it: one written in the background, one waited for."""
    torch.set_num_threads(1)
    from megatron_nft.run.checkpoints import Checkpoints

    config, found = recipe(folder), []
    actors = OneRank(config, master)
    for step, in_background in ((1, "true"), (2, "false")):
        config = recipe(folder, f"checkpoint.in_background={in_background}")
        checkpoints = Checkpoints(config, actors, print, lambda step: {"step": step, "kind": "step"})
        actors.update()
        checkpoints.begin(progress(step))
        whole = checkpoint_folder.step_folder(config.run_dir, step)
        found.append(whole.exists())
        deadline = time.monotonic() + 60
        while not whole.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found.append(json.loads((whole / "run.json").read_text())["record"])
        checkpoints.close()
    return found


def test_a_checkpoint_counts_when_it_is_written_wherever_the_run_is_at_and_its_steps_record_goes_with_it(tmp_path):
    (found,) = run_ranks(1, publish, str(tmp_path))
    assert found[1:] == [{"step": 1, "kind": "step"}, True, {"step": 2, "kind": "step"}]


def stop(rank, master, folder):
    """A stop while a save is under way: of this very step, and of the one before. What was begun, and what is there."""
    torch.set_num_threads(1)
    from megatron_nft.run.checkpoints import Checkpoints

    config, begun, release = recipe(folder), [], threading.Event()
    actors, begin_save = OneRank(config, master), OneRank.begin_save
    actors.begin_save = lambda folder, step, version: (begun.append(step), begin_save(actors, folder, step, version))
    checkpoints = Checkpoints(config, actors, print)
    write = checkpoint._write

    def slowly(*arguments):
        release.wait()
        write(*arguments)

    def names():
        return sorted(path.name for path in (config.run_dir / "checkpoints").iterdir())

    checkpoint._write = slowly
    actors.update()
    checkpoints.begin(progress(1))
    threading.Timer(0.5, release.set).start()
    checkpoints.finish(1)  # the save under way is of the step that is to be saved
    seen = [(list(begun), checkpoints.newest_step, names())]
    release.clear()
    actors.update()
    checkpoints.begin(progress(2))
    actors.update()
    checkpoint._write = write
    checkpoints.finish(3)
    seen.append((list(begun), checkpoints.newest_step, names()))
    checkpoints.begin(progress(3))
    checkpoints.finish(3)
    seen.append((list(begun), checkpoints.newest_step, names()))
    release.set()
    checkpoints.close()
    return seen


def test_a_stop_waits_for_one_save(tmp_path):
    (seen,) = run_ranks(1, stop, str(tmp_path))
    assert seen == [
        ([1], 1, ["latest", "step_1"]),
        ([1, 2], 1, ["latest", "step_1", "step_2.partial"]),
        ([1, 2, 3], 3, ["latest", "step_1", "step_3"]),
    ]
