"""Folders and files of checkpoints: what counts as one, what is kept, what is damaged."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from megatron_nft.actor import checkpoint_parts
from megatron_nft.actor.checkpoint_metadata import check_pickles, read_metadata
from megatron_nft.actor.manifest import CheckpointError, FileRecord, damages, read_manifest, record, shares
from megatron_nft.config import load_config
from megatron_nft.observe.owner import FOLDER as OWNERS
from megatron_nft.observe.owner import Owner, OwnerLost
from megatron_nft.run import checkpoint_folder
from megatron_nft.run.checkpoints import Checkpoints, Progress
from megatron_nft.run.publication import Publication

RANKS = 3
NOTHING = {"policy_version": 4, "sampling": {}, "minutes": 0.0}
PARTS = {"the plan", "rank 0", "rank 1", "rank 2", "the driver"}


def begin(run_dir, step, text="weights"):
    """All files, and no part yet."""
    partial = checkpoint_folder.begin(run_dir, step)
    (partial / "hf").mkdir()
    (partial / "hf" / "config.json").write_text("{}")
    (partial / "weights").write_text(text)
    for rank in range(RANKS):
        torch.save({"rank": rank}, partial / f"__{rank}_0.distcp")
    return partial


def write_parts(partial, parts=PARTS):
    """Each says that its files are written."""
    if "the plan" in parts:
        plan = Metadata(state_dict_metadata={f"object {rank}": BytesStorageMetadata() for rank in range(RANKS)})
        checkpoint_parts.write_plan(partial, plan)
    for rank in range(RANKS):
        if f"rank {rank}" in parts:
            path = partial / f"__{rank}_0.distcp"
            result = WriteResult(
                MetadataIndex(f"object {rank}"), path.stat().st_size, _StorageInfo(path.name, 0, path.stat().st_size)
            )
            checkpoint_parts.write_part(partial, rank, RANKS, {path.name: record(path)}, [result])
    if "the driver" in parts:
        checkpoint_parts.write_driver_part(partial, ["weights", "hf/config.json"])


def hand_on(run_dir):
    """To a second owner, which took the first for dead."""
    (run_dir / OWNERS / "2").write_text((run_dir / OWNERS / "1").read_text())


def save(run_dir, step, text="weights"):
    partial = begin(run_dir, step, text)
    write_parts(partial)
    return checkpoint_folder.complete(partial)


def everything(run_dir, step):
    return [path for path in checkpoint_folder.step_folder(run_dir, step).rglob("*") if path.is_file()]


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_checkpoint_is_there_once_it_is_published(tmp_path):
    partial = checkpoint_folder.begin(tmp_path, 4)
    assert checkpoint_folder.published(tmp_path) == [] and names(tmp_path) == ["step_4.partial"]
    (partial / "weights").write_text("half")
    save(tmp_path, 4)
    assert names(tmp_path) == ["latest", "step_4"]
    assert os.readlink(tmp_path / "checkpoints" / "latest") == "step_4"
    manifest = read_manifest(tmp_path / "checkpoints" / "latest")
    files = {"weights", "hf/config.json", ".metadata", "metadata.json", *(f"__{r}_0.distcp" for r in range(RANKS))}
    assert manifest.keys() == files
    assert {str(p.relative_to(tmp_path / "checkpoints" / "step_4")) for p in everything(tmp_path, 4)} == {
        *files,
        "manifest.json",
    }
    sha256 = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"  # printf weights | sha256sum
    assert manifest["weights"] == FileRecord(num_bytes=7, sha256=sha256)


def test_all_bytes_are_on_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    """A name must not outlive a power cut that its contents don't."""
    done, replace, fsync = [], os.replace, os.fsync

    def renamed(old, new):
        done.append(("named", os.path.basename(new)))
        replace(old, new)

    def on_disk(descriptor):
        done.append(("on disk", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    partial = begin(tmp_path, 4)
    write_parts(partial)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "fsync", on_disk)
    checkpoint_folder.complete(partial)
    first = done.index(("named", "step_4"))
    for name in (".metadata", "metadata.json", "manifest.json"):  # who wrote the others has seen to them
        assert done.index(("on disk", f"{name}.new")) < done.index(("named", name)) < first
    assert done[first - 1] == ("on disk", "step_4.partial")
    assert done[first + 1 :] == [("on disk", "checkpoints"), ("named", "latest")]


@pytest.mark.parametrize("missing", sorted(PARTS))
def test_it_is_whole_when_the_last_part_is_there_and_not_before(tmp_path, missing):
    partial = begin(tmp_path, 4)
    write_parts(partial, PARTS - {missing})
    assert checkpoint_folder.complete(partial) is None and names(tmp_path) == ["step_4.partial"]
    (words,) = checkpoint_parts.missing_parts(partial)
    assert words == {"the plan": "the plan of rank 0", "the driver": "the driver"}.get(
        missing, f"1 of 3 ranks ({missing[-1]})"
    )
    write_parts(partial, {missing})
    assert checkpoint_folder.complete(partial) == checkpoint_folder.step_folder(tmp_path, 4)


def test_the_whole_is_what_the_ranks_wrote(tmp_path):
    folder = save(tmp_path, 4)
    check_pickles(folder)
    stored = read_metadata(folder).storage_data
    for rank in range(RANKS):
        place = stored[MetadataIndex(f"object {rank}")]
        assert torch.load(folder / place.relative_path, weights_only=True) == {"rank": rank}


class Killed(BaseException):
    """As SIGKILL, at a place."""


def steps_of_a_completion(monkeypatch, at=None):
    """Counts what changes the disk; the one with number `at` doesn't come about, nor what follows."""
    count = 0

    def counted(function):
        def call(*arguments, **more):
            nonlocal count
            count += 1
            if count == at:
                raise Killed
            return function(*arguments, **more)

        return call

    for module, name in [(os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (os, "symlink"), (os, "rmdir")]:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return lambda: count


def test_killed_at_every_step_of_a_completion_the_next_start_has_the_checkpoint(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        counted = steps_of_a_completion(patch)
        save(tmp_path / "count", 2)
        number_of_parts = counted()
        save(tmp_path / "count", 4)
        total = counted() - number_of_parts
    assert total > 20
    save(tmp_path / "before", 2)
    for at in range(1, total + 1):
        run_dir = tmp_path / str(at)
        shutil.copytree(tmp_path / "before", run_dir, symlinks=True)
        with pytest.MonkeyPatch.context() as patch:
            steps_of_a_completion(patch, at)
            with pytest.raises(Killed):
                save(run_dir, 4)
        partial = run_dir / "checkpoints" / "step_4.partial"
        was_left, was_whole = partial.exists(), not checkpoint_parts.missing_parts(partial)
        was_manifest = (partial / "manifest.json").exists()
        was_there = (run_dir / "checkpoints" / "step_4").exists()
        said = checkpoint_folder.complete_left_behind(run_dir)
        newest = 4 if was_whole or was_manifest or was_there else 2
        folder = checkpoint_folder.published(run_dir)[0]
        assert checkpoint_folder.step_of(folder) == newest, (at, said)
        assert damages(folder, read_manifest(folder), read_manifest(folder)) == []
        assert names(run_dir) == ["latest", "step_2", *(["step_4"] if newest == 4 else [])], (at, said)
        assert os.readlink(run_dir / "checkpoints" / "latest") == folder.name
        assert len(said) == was_left, (at, said)
        check_pickles(folder)


def test_what_a_killed_run_left_is_completed_or_named(tmp_path):
    save(tmp_path, 2)
    write_parts(begin(tmp_path, 4))
    write_parts(begin(tmp_path, 6), PARTS - {"rank 1", "the driver"})
    short = begin(tmp_path, 8)
    write_parts(short)
    (short / "__2_0.distcp").write_bytes(b"short")
    completed, half, damaged = checkpoint_folder.complete_left_behind(tmp_path)
    folder = tmp_path / "checkpoints"
    assert completed == f"{folder}/step_4: was whole when the run was killed, and is published now"
    assert half.startswith(f"{folder}/step_6.partial: half-written") and "the driver, 1 of 3 ranks (1)" in half
    assert "__2_0.distcp: has 5 bytes" in damaged
    assert names(tmp_path) == ["latest", "step_2", "step_4"]
    assert checkpoint_folder.complete_left_behind(tmp_path) == []


def test_a_thread_publishes_it_when_the_last_part_comes(tmp_path):
    partial, published = begin(tmp_path, 4), []
    publication = Publication(partial, lambda: None, lambda: published.append(names(tmp_path)))
    write_parts(partial, PARTS - {"rank 1"})
    assert not publication.wait(0.2)
    write_parts(partial, {"rank 1"})
    assert publication.wait(5) and publication.is_published and published == [["latest", "step_4"]]


def test_at_a_runs_end_what_is_whole_is_published_and_what_is_not_stays(tmp_path):
    whole, half = begin(tmp_path, 4), begin(tmp_path, 6)
    publications = [Publication(partial, lambda: None, lambda: None) for partial in (whole, half)]
    write_parts(whole)
    for publication in publications:
        publication.close()
    assert [publication.is_published for publication in publications] == [True, False]
    assert names(tmp_path) == ["latest", "step_4", "step_6.partial"]


def test_what_can_not_be_published_is_an_error_and_no_thread_that_looks_for_ever(tmp_path):
    partial = begin(tmp_path, 4)
    write_parts(partial)
    (partial / "__2_0.distcp").unlink()
    publication = Publication(partial, lambda: None, lambda: None)
    assert publication.wait(5) and not publication.is_published
    assert "__2_0.distcp: has 0 bytes" in str(publication.error)
    publication = Publication(partial, (partial / "no folder" / "run.json").touch, lambda: None)
    assert publication.wait(5) and "no folder/run.json" in str(publication.error)


def test_a_thread_whose_folder_is_anothers_publishes_nothing_and_deletes_nothing(tmp_path):
    partial, first = begin(tmp_path, 4), Owner.take(tmp_path)
    publication = Publication(partial, lambda: None, lambda: None, first.check)
    hand_on(tmp_path)
    write_parts(partial)
    assert publication.wait(5) and not publication.is_published
    assert isinstance(publication.error, OwnerLost) and names(tmp_path) == ["step_4.partial"]
    first.leave()


def test_steps_are_sorted_as_numbers(tmp_path):
    for step in (9, 10, 2):
        save(tmp_path, step)
    assert [checkpoint_folder.step_of(f) for f in checkpoint_folder.published(tmp_path)] == [10, 9, 2]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"), [(1, 0, [6]), (2, 0, [5, 6]), (1, 2, [2, 4, 6]), (3, 4, [4, 5, 6])]
)
def test_what_is_kept(tmp_path, keep_last, keep_every, left):
    for step in range(1, 7):
        save(tmp_path, step)
    for step in (5, 9):
        checkpoint_folder.begin(tmp_path, step)
    checkpoint_folder.prune(tmp_path, newest=6, keep_last=keep_last, keep_every=keep_every)
    assert sorted(checkpoint_folder.step_of(f) for f in checkpoint_folder.published(tmp_path)) == left
    assert [name for name in names(tmp_path) if "." in name] == ["step_9.partial"], "what is under way stays"


def test_steps_after_the_newest_are_left_alone(tmp_path):
    """They are damaged ones: the run went on from before them."""
    for step in (2, 4, 8):
        save(tmp_path, step)
    checkpoint_folder.prune(tmp_path, newest=4, keep_last=1, keep_every=0)
    assert names(tmp_path) == ["latest", "step_4", "step_8"]


def test_a_damaged_folder_is_moved_aside_and_never_deleted(tmp_path):
    save(tmp_path, 4, "first")
    save(tmp_path, 4, "second")
    save(tmp_path, 4, "third")
    assert names(tmp_path) == ["latest", "step_4", "step_4.damaged", "step_4.damaged2"]
    assert (tmp_path / "checkpoints" / "step_4" / "weights").read_text() == "third"
    assert (tmp_path / "checkpoints" / "step_4.damaged" / "weights").read_text() == "first"


def test_damages_are_named(tmp_path):
    folder = save(tmp_path, 4)
    manifest = read_manifest(folder)
    assert damages(folder, manifest, manifest) == []
    (folder / "weights").write_text("weightz")
    (folder / "hf" / "config.json").unlink()
    flipped, gone = damages(folder, manifest, ["weights", "hf/config.json"])
    assert flipped == f"{folder}/weights: its bytes have changed since it was written (SHA-256)"
    assert gone == f"{folder}/hf/config.json: missing"
    (folder / "weights").write_text("wei")
    assert "has 3 bytes, 7 were written" in damages(folder, manifest, ["weights"])[0]


def test_every_flipped_bit_of_the_manifest_is_seen(tmp_path):
    folder = tmp_path
    (folder / "weights").write_text("weights")
    checkpoint_folder.write_manifest(folder, {"weights": record(folder / "weights")})
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"manifest.json: damaged"):
                read_manifest(folder)


def test_no_manifest(tmp_path):
    with pytest.raises(CheckpointError, match=r"manifest.json: missing; .* is no checkpoint of a run"):
        read_manifest(tmp_path)


def test_shares_hold_every_file_once_and_are_of_like_size(tmp_path):
    sizes = {"a": 100, "b": 90, "c": 60, "d": 50, "e": 1}
    manifest = {name: FileRecord(num_bytes=size, sha256="") for name, size in sizes.items()}
    of_two = shares(manifest, 2)
    assert sorted(name for share in of_two for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in of_two]
    assert max(loads) - min(loads) <= 1
    assert shares(manifest, 8)[5:] == [[], [], []]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_save_that_is_given_up_is_deleted_by_the_folders_owner_only(tmp_path, is_lost):
    def broken():
        raise CheckpointError("actor rank 1: no space left")

    config = load_config("launch/recipes/quickstart.toml", [f"run.dir={tmp_path}", "run.name=x"])
    ranks, first = SimpleNamespace(begin_save=lambda *where: None, is_saved=broken), Owner.take(config.run_dir)
    checkpoints = Checkpoints(config, ranks, lambda line: None, check=first.check)
    checkpoints.begin(Progress(step=4, **NOTHING))
    if is_lost:
        hand_on(config.run_dir)
        for act in (checkpoints.poll, lambda: checkpoints.begin(Progress(step=6, **NOTHING))):
            with pytest.raises(OwnerLost):
                act()
    else:
        checkpoints.poll()
    assert names(config.run_dir) == (["step_4.partial"] if is_lost else [])
    checkpoints.close()
    first.leave()
