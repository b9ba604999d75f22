"""Megatron ranks that send weights, as weights/sync.py sees its actor: real Workers in processes of their own."""

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_nft.config import load_config
from megatron_nft.weights.wire import BucketManifest
from tests.parallel.ranks import run_ranks
from tests.remote import Meeting, serve


class Rank:
    """Served by a rank: the verbs of a Worker that a sync calls, `score`, and new weights from a folder."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.weight_names, self.num_rounds = worker.weight_names, worker.num_rounds
        self.send_bucket, self.score = worker.send_bucket, worker.score
        self.save_hf, self.save_adapter = worker.save_hf, worker.save_adapter

    def read(self, folder: str) -> None:
        from megatron_nft.actor.hf_weights import load_hf_weights

        load_hf_weights(self.worker.model, folder, self.worker.hf, self.worker.topology)

    def draw(self, seed: int) -> None:
        """Other adapters, B and all, the same on ranks that have them alike."""
        import torch

        from megatron_nft.actor.lora import named_adapters

        for name, parameter in named_adapters(self.worker.model):
            is_cut = getattr(parameter, "tensor_model_parallel", False)
            key = f"{seed} {name} {self.worker.topology.tp_rank if is_cut else 0}"
            numbers = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=numbers))


def serve_rank(rank: int, master: str, addresses: list[str], overrides: list[str]) -> None:
    from megatron_nft.actor.worker import Worker

    worker = Worker(
        load_config("launch/recipes/quickstart.toml", ["rollout.engines=1", *overrides]), rank=rank, master=master
    )
    serve(addresses[rank], Rank(worker))
    worker.shutdown()


class Trainer:
    """All ranks."""

    def __init__(self, ranks: list[Any]) -> None:
        self._ranks = ranks
        self.weight_names = [name for names in self.call("weight_names") if names for name in names]
        self.num_rounds = max(self.call("num_rounds"))

    def call(self, verb: str, *arguments: Any) -> list[Any]:
        for rank in self._ranks:
            rank.begin(verb, *arguments)
        return [rank.wait() for rank in self._ranks]

    def begin_send(self, index: int, link: int) -> "Sending":
        for rank in self._ranks:
            rank.begin("send_bucket", index, link)
        return Sending(self._ranks)

    def offload(self) -> None:
        pass


class LocalEngines:
    """The part of engines in a sync that needs no Ray: nobody dies, nobody sleeps."""

    link = 0

    def with_replacements(self, work: Any) -> Any:
        return work()

    def wake(self, what: str) -> None:
        pass


class Sending:
    def __init__(self, ranks: list[Any]) -> None:
        self._ranks = ranks

    def wait(self) -> list[BucketManifest]:
        return [BucketManifest.from_dict(plain) for rank in self._ranks if (plain := rank.wait()) is not None]


@contextmanager
def trainer(folder: Path, overrides: list[str]) -> Iterator[Trainer]:
    """A trainer with the quickstart's recipe and these changes; its sockets lie in `folder`."""
    world_size = load_config("launch/recipes/quickstart.toml", overrides).actor.world_size
    meetings = [Meeting(folder, f"rank{rank}") for rank in range(world_size)]
    addresses = [meeting.address for meeting in meetings]
    thread = threading.Thread(
        target=run_ranks, args=(world_size, serve_rank, addresses, overrides), kwargs={"timeout_s": 600.0}
    )
    thread.start()
    ranks = [meeting.accept() for meeting in meetings]
    try:
        yield Trainer(ranks)
    finally:
        for rank in ranks:
            rank.close()
        thread.join()
