"""What each rank has written of a checkpoint, in a file beside its own; and the whole, made of these without any rank.

    written/plan                 of rank 0: what the tensors of all ranks are together (torch's Metadata, pickled)
    written/rank_3_of_4.json     rank 3's files with size and SHA-256, and which box of which tensor lies where in them
    written/driver.json          the driver's files

A part is written when its files are on the disk. Whoever sees all of them can make `.metadata` and metadata.json of
them: the driver while the run goes on, a later start after the run was killed (both run/checkpoint_folder.py), rank 0
where there is no driver (checkpoint.py).
"""

import json
import pickle
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Size
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from megatron_nft.actor.checkpoint_metadata import FORMAT, METADATA, METADATA_JSON, read_metadata
from megatron_nft.actor.manifest import CheckpointError, FileRecord, record, write_to_disk

PARTS, PLAN, DRIVER = "written", "plan", "driver.json"


def write_plan(folder: Path, metadata: Metadata) -> None:
    """By rank 0, before or while the ranks write."""
    vars(metadata).pop("all_local_plans", None)  # of use to a next save by Megatron's own writer only
    _write(folder, PLAN, pickle.dumps(metadata))


def write_part(
    folder: Path, rank: int, num_ranks: int, files: Mapping[str, FileRecord], results: Iterable[WriteResult]
) -> None:
    """By a rank whose files are on the disk.

    Args:
        results: of all tensors and objects in them.
    """
    items = []
    for result in results:
        index, place = result.index, result.storage_data
        offset = None if index.offset is None else list(index.offset)
        items.append([index.fqn, offset, index.index, place.relative_path, place.offset, place.length])
    part = {"files": {name: asdict(files[name]) for name in files}, "items": items}
    _write(folder, f"rank_{rank}_of_{num_ranks}.json", json.dumps(part).encode())


def write_driver_part(folder: Path, names: Iterable[str]) -> None:
    """By the driver, once it has written these files."""
    files = {name: asdict(record(folder / name)) for name in names}
    _write(folder, DRIVER, json.dumps({"files": files}).encode())


def missing_parts(folder: Path) -> list[str]:
    """Who hasn't written its part yet, in words; empty if the checkpoint is whole."""
    names = {path.name for path in (folder / PARTS).glob("*")}
    ranks = [match for name in names if (match := re.fullmatch(r"rank_\d+_of_(\d+)\.json", name))]
    found = ["the driver"] if DRIVER not in names else []
    if not ranks:
        return [*found, "all ranks"]
    num_ranks = int(ranks[0][1])
    found += ["the plan of rank 0"] if PLAN not in names else []
    absent = [str(rank) for rank in range(num_ranks) if f"rank_{rank}_of_{num_ranks}.json" not in names]
    return [*found, f"{len(absent)} of {num_ranks} ranks ({', '.join(absent[:8])})"] if absent else found


def assemble(folder: Path) -> dict[str, FileRecord]:
    """Makes one checkpoint of all ranks' parts, which must be there.

    Returns:
        All its files, which are on the disk.

    Raises:
        CheckpointError: a part is damaged, or a file is not as long as it was written.
    """
    metadata = read_metadata(folder / PARTS, PLAN)
    metadata.storage_data = {}
    records: dict[str, FileRecord] = {}
    for path in (folder / PARTS).glob("*.json"):
        try:
            part = json.loads(path.read_text())
            records |= {name: FileRecord(**plain) for name, plain in part["files"].items()}
            for fqn, offset, index, *place in part.get("items", ()):
                box = MetadataIndex(fqn, None if offset is None else Size(offset), index)
                metadata.storage_data[box] = _StorageInfo(*place)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged ({error!r}); its checkpoint can't be completed") from None
    for name, expected in records.items():
        num_bytes = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if num_bytes != expected.num_bytes:
            raise CheckpointError(f"{folder / name}: has {num_bytes:,} bytes, {expected.num_bytes:,} were written")
    write_to_disk(folder / METADATA, pickle.dumps(metadata))
    write_to_disk(folder / METADATA_JSON, json.dumps(FORMAT).encode())
    return records | {name: record(folder / name) for name in (METADATA, METADATA_JSON)}


def forget_parts(folder: Path) -> None:
    """Once they are assembled."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def _write(folder: Path, name: str, content: bytes) -> None:
    (folder / PARTS).mkdir(exist_ok=True)
    write_to_disk(folder / PARTS / name, content)
