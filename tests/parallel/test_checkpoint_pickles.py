"""A checkpoint is data: with code in any place where a pickle can stand nothing runs; the error says where it is."""

import io
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from megatron_nft.actor.checkpoint_metadata import read_metadata
from megatron_nft.actor.manifest import CheckpointError
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel
RANDOM = "random/shard_0.0.0.0_1.1.1.1"


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, made):
        self.made = str(made)

    def __reduce__(self):
        return os.mkdir, (self.made,)


def save(rank, master, folder):
    """A checkpoint of one rank after an update."""
    worker = a_worker(rank, master)
    from megatron_nft.data.packing import pack
    from tests.parallel.test_layouts import stored_sequences

    batch = pack([stored_sequences()[0][:4]], num_updates=1, dp=1, tokens_per_microbatch=1000)
    worker.train_step([batch.updates[0][0]])
    worker.save(folder)


def a_worker(rank, master):
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker
    from megatron_nft.config import load_config

    return Worker(load_config("launch/recipes/quickstart.toml", ["actor.tp=1"]), rank=rank, master=master)


def load(rank, master, folders):
    """What a rank says to each, as a run's checkpoint and as a model to begin with."""
    worker, said = a_worker(rank, master), {}
    from megatron_nft.actor.checkpoint import load_weights

    for name, folder in folders.items():
        said[name] = []
        for read in (worker.load, lambda folder: load_weights(Path(folder), worker.model)):
            try:
                read(folder)
                said[name].append("loaded")
            except CheckpointError as error:
                said[name].append(str(error))
    return said


def put_in(folder, name, made):
    """Code in one place of a checkpoint."""
    code = Malicious(made)
    metadata = read_metadata(folder)
    if name == "metadata":
        metadata.planner_data = code
    elif name == "a plan of a rank":
        metadata.all_local_plans = [code]
    elif name == "common.pt":
        common = torch.load(folder / "common.pt", weights_only=True)
        torch.save(common | {"schedule": code}, folder / "common.pt")
    elif name == "the random state":
        replace(metadata, folder, RANDOM, [{"cpu": code}])
    elif name == "a tensor":
        replace(metadata, folder, "decoder.final_layernorm.weight", code)
    elif name == "extra state":
        key = "decoder.layers.mlp.linear_fc1._extra_state/shard_0_4"
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        replace(metadata, folder, key, [io.BytesIO(pickle.dumps(code)), code])
    elif name == "a file elsewhere":
        index = MetadataIndex(RANDOM)
        metadata.storage_data[index].relative_path = "../elsewhere"
    if name != "none":
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def replace(metadata, folder, key, value):
    """What is stored under a key, by something at the end of a file."""
    index = next((i for i in metadata.storage_data if i.fqn == key), MetadataIndex(key))
    path = next(iter(sorted(folder.glob("*.distcp"))))
    start = path.stat().st_size
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with path.open("ab") as file:
        file.write(buffer.getvalue())
    place = metadata.storage_data.get(index) or next(iter(metadata.storage_data.values()))
    metadata.storage_data[index] = type(place)(path.name, start, len(buffer.getvalue()))


PLACES = {
    "metadata": ".metadata: refused, it names posix.mkdir",
    "a plan of a rank": ".metadata: refused, it names posix.mkdir",
    "common.pt": "common.pt: refused, it names posix.mkdir",
    "the random state": f"__0_0.distcp: {RANDOM} in it is refused, it names posix.mkdir",
    "extra state": "_extra_state/shard_0_4 in it is refused, it names ",
    "a file elsewhere": ".metadata: refused, it names '../elsewhere', a file elsewhere",
}


def test_code_in_any_place_is_refused_before_megatron_reads_it(tmp_path):
    (tmp_path / "none").mkdir()
    run_ranks(1, save, str(tmp_path / "none"))
    places = [name for name in (*PLACES, "a tensor") if name != "common.pt" or (tmp_path / "none" / name).exists()]
    for name in places:
        shutil.copytree(tmp_path / "none", tmp_path / name)
        put_in(tmp_path / name, name, tmp_path / "made")
    (said,) = run_ranks(1, load, {name: str(tmp_path / name) for name in [*places, "none"]})
    assert not (tmp_path / "made").exists()
    assert said.pop("none") == ["loaded", "loaded"]
    for name, words in said.items():
        for word in words:
            assert word.startswith(str(tmp_path / name)) and PLACES.get(name, "mkdir") in word, (name, word)
            assert "Use one of a run of yours" in word or "copy it again" in word or name == "a file elsewhere"
