"""Folders and files of checkpoints: what counts as one, what is kept, what is damaged."""

import os

import pytest

from megatron_nft.actor.manifest import CheckpointError, FileRecord, damages, read_manifest, record, shares
from megatron_nft.run import checkpoint_folder


def save(run_dir, step, text="weights", sub="hf"):
    partial = checkpoint_folder.begin(run_dir, step)
    (partial / sub).mkdir()
    (partial / sub / "config.json").write_text("{}")
    (partial / "weights").write_text(text)
    return checkpoint_folder.publish(partial, {"weights": record(partial / "weights")})


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
    assert manifest.keys() == {"weights", "hf/config.json"}
    sha256 = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"  # printf weights | sha256sum
    assert manifest["weights"] == FileRecord(num_bytes=7, sha256=sha256)


def test_all_bytes_are_on_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    """A name must not outlive a power cut that its contents don't."""
    done, replace = [], os.replace

    def renamed(old, new):
        done.append(("named", os.path.basename(new)))
        replace(old, new)

    monkeypatch.setattr(checkpoint_folder, "to_disk", lambda path: done.append(("on disk", path.name)))
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path, 4)
    first = done.index(("named", "step_4"))
    written = {"manifest.json", "config.json", "hf", "step_4.partial"}  # the ranks have seen to their own files
    assert {name for what, name in done[:first] if what == "on disk"} == written
    assert done[first + 1 :] == [("on disk", "checkpoints"), ("named", "latest")]


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
    checkpoint_folder.begin(tmp_path, 9)
    checkpoint_folder.prune(tmp_path, newest=6, keep_last=keep_last, keep_every=keep_every)
    assert sorted(checkpoint_folder.step_of(f) for f in checkpoint_folder.published(tmp_path)) == left
    assert not [name for name in names(tmp_path) if "." in name], "what killed runs left is gone"


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
    folder = save(tmp_path, 4)
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
