"""Actor ranks that answer instead of computing: all of a cluster's in one process, with the messages of real ones.

Log-probs, manifests of weight buckets, parts of a checkpoint: what each rank would return, as large as it would be.
Run by stand_ins.py; the verbs are actor/worker.py's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import Metadata

from megatron_nft.actor.checkpoint_parts import write_part, write_plan
from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig, read_hf_config
from megatron_nft.families.parameters import parameters
from megatron_nft.plan.buckets import TENSOR_ALIGNMENT, bucket_bytes

HANDLE = ["ab" * 64, 1 << 29, 0, "cd" * 40, 0, "ef" * 32, True, 1 << 29]
"""As long as a handle of CUDA IPC is in a manifest (weights/cuda_ipc.py)."""


@dataclass(frozen=True)
class _Place:
    """A rank's, as Megatron numbers them: tensor axis fastest, then context, data, pipeline."""

    tp: int
    cp: int
    dp: int
    pp: int

    @classmethod
    def of(cls, config: Config, rank: int) -> "_Place":
        actor = config.actor
        rest, tp = divmod(rank, actor.tp)
        rest, cp = divmod(rest, actor.cp)
        pp, dp = divmod(rest, actor.dp)
        return cls(tp, cp, dp, pp)


class PlayedRanks:
    """All ranks of an actor."""

    def __init__(self, config: Config) -> None:
        self._config, self._hf = config, read_hf_config(config.model.path)
        self._places = [_Place.of(config, rank) for rank in range(config.actor.world_size)]
        self._buckets = [stage_buckets(config, self._hf, stage) for stage in range(config.actor.pp)]
        self._first: dict[int, list] = {}  # the first update's microbatches, of ranks that speak
        self.verbs: Counter[str] = Counter()

    def call(self, rank: int, verb: str, arguments: tuple) -> Any:
        """One rank's verb, as Ray brings it."""
        self.verbs[verb] += 1
        played = getattr(self, f"_{verb}", None)
        return played(rank, *arguments) if played else None

    def _speaks(self, rank: int) -> bool:
        place = self._places[rank]
        return place.tp == place.cp == 0 and place.pp == self._config.actor.pp - 1

    def _leads(self, rank: int) -> bool:
        place = self._places[rank]
        return place.tp == place.cp == place.dp == 0

    def _sends(self, rank: int) -> bool:
        """It owns weights, or all take part."""
        place = self._places[rank]
        return place.dp == place.cp == 0 or self._config.carrier_traits.every_rank_sends

    def _score(self, rank: int, microbatches: Sequence[Any]) -> list | None:
        if not self._speaks(rank):
            return None
        return [s.engine_logprobs_A for microbatch in microbatches for s in microbatch.sequences]

    def _train_step(self, rank: int, updates: Sequence[Sequence[Any]], step: int) -> dict[str, float] | None:
        if self._speaks(rank):
            self._first[rank] = list(updates[0])
        if not self._speaks(rank) or self._places[rank].dp:
            return None
        tokens = sum(m.num_tokens for update in updates for m in update) * self._config.actor.dp
        return {"nft/loss": 0.0, "actor/nonfinite_updates": 0.0, "actor/tokens": float(tokens)}

    def _first_logprobs(self, rank: int) -> list | None:
        return self._score(rank, self._first.pop(rank, []))

    def _weight_names(self, rank: int) -> list[str] | None:
        if not self._leads(rank):
            return None
        return [name for bucket in self._buckets[self._places[rank].pp] for name in bucket]

    def _num_rounds(self, rank: int) -> int:
        if not self._sends(rank):
            return 0
        return self._config.carrier_traits.num_rounds([len(of_stage) for of_stage in self._buckets])

    def _send_bucket(self, rank: int, index: int, link: int) -> dict | None:
        takes_turns = self._config.carrier_traits.stages_take_turns
        number, stage = divmod(index, self._config.actor.pp) if takes_turns else (index, self._places[rank].pp)
        buckets = self._buckets[stage]
        if not self._leads(rank) or self._places[rank].pp != stage or number >= len(buckets):
            return None
        tensors, offset = {}, 0
        for name, shape in buckets[number].items():
            tensors[name] = ["bfloat16", list(shape), offset]
            offset += _room(shape)
        ranks = range(len(self._places)) if takes_turns and index < 2 else ()
        return {
            "carrier": self._config.carrier,
            "bucket": f"bucket {number} of stage {stage}",
            "place": {"sender": "0" * 32, "slot": index % 2, "handles": {f"GPU-{r:032x}": HANDLE for r in ranks}},
            "tensors": tensors,
            "checksum": None,
        }

    def _begin_save(self, rank: int, folder: str, step: int, policy_version: int) -> None:
        write_part(Path(folder), rank, len(self._places), {}, [])
        if rank == 0:
            write_plan(Path(folder), Metadata(state_dict_metadata={}))

    def _save_state(self, rank: int) -> tuple[bool, str | None]:
        return True, None

    def _save_hf(self, rank: int, folder: str) -> dict[str, str] | None:
        if not self._leads(rank):
            return None
        name = f"model-{self._places[rank].pp:05d}.safetensors"
        save_file({"stand.in": torch.zeros(1, dtype=torch.bfloat16)}, Path(folder) / name)
        return {"stand.in": name}

    def counts(self) -> Mapping[str, float]:
        """Calls by verb, since the start."""
        return dict(self.verbs)


def stage_buckets(config: Config, hf: HFConfig, stage: int) -> list[dict[str, tuple[int, ...]]]:
    """HF tensors of each bucket that a pipeline stage sends, cut as the planner counts them."""
    pp, layers = config.actor.pp, hf.num_hidden_layers // config.actor.pp
    tensors: dict[str, tuple[int, ...]] = {}
    for parameter in parameters(hf):
        first_or_last = 0 if parameter.key.startswith("embedding") else pp - 1
        if stage == (first_or_last if parameter.layer is None else parameter.layer // layers):
            tensors |= parameter.hf_shapes
    buckets: list[dict[str, tuple[int, ...]]] = []
    waiting = iter(tensors.items())
    for size in bucket_bytes(config, hf, stage):
        bucket: dict[str, tuple[int, ...]] = {}
        while size > 0 and (item := next(waiting, None)) is not None:
            bucket[item[0]] = item[1]
            size -= _room(item[1])
        buckets.append(bucket)
    return buckets


def _room(shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in a bucket."""
    return -(-2 * prod(shape) // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
