"""Routing replay: a mixture's tokens go to the experts that somebody has chosen before, the engine or the actor itself.

What to replay comes in with the microbatches (`experts_R`, the engine's choice), or is kept here from the scoring to
the training (the actor's); the routers of the model then gather their probabilities at those experts, so that gradients
flow as ever. It hangs on Megatron's routers where Megatron's own RouterReplay would (`router.router_replay`), and takes
its place: that one tells passes apart by their order, and replays all tokens or none. Here a pass carries its experts
along, in `packed_seq_params`: a layer gets them with its input, in whatever order the schedule runs passes, and again
when the backward pass computes the layer anew. A token whose experts are not known goes where the router sends it: each
sequence's last one, padding, an answer whose experts were lost with a node.

Called by actor/worker.py and actor/pipeline.py. Adapted to megatron-core 0.16.1 and 0.19.2.
Shape suffixes: _T tokens that this rank routes (with sequence parallelism its share), _K experts that a token goes to,
_L layers of this rank, _R the first tokens of a sequence.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from megatron_nft.actor.packed import PackedTokens
from megatron_nft.actor.topology import Topology
from megatron_nft.config import ActorConfig
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.types import MicroBatch

Purpose = Literal["score", "reference", "train", "plain"]
"""Of a pass; a plain one replays nothing."""


class ReplayError(ValueError):
    """What is to be replayed is not there, or is another model's."""


@dataclass
class RoutedPass:
    """A microbatch on its way through this rank's layers: which experts its tokens go to."""

    experts_TK: Mapping[int, Tensor] = field(default_factory=dict)  # by layer, any integer type
    known_T: Tensor | None = None  # bool: tokens that `experts_TK` says something of; None: all
    recorded_TK: dict[int, Tensor] | None = None  # takes the routers' own choice in, and replays nothing
    differing: Tensor | None = None  # float64 [2] adds up: replayed experts that the router would not take, and all

    def choose(self, layer: int, own_TK: Tensor) -> Tensor:
        """The experts of a layer's tokens, given the router's own."""
        if self.recorded_TK is not None:
            self.recorded_TK[layer] = own_TK.to(torch.int16)
            return own_TK
        replayed_TK = self.experts_TK[layer].to(own_TK.device, own_TK.dtype)
        if self.differing is not None:
            differs_TK = (replayed_TK[:, :, None] != own_TK[:, None, :]).all(-1)
            counted_TK = differs_TK if self.known_T is None else differs_TK[self.known_T]
            self.differing += torch.stack([counted_TK.sum(), torch.ones_like(counted_TK).sum()])
        return replayed_TK if self.known_T is None else torch.where(self.known_T[:, None], replayed_TK, own_TK)


class _Router:
    """In place of a router's RouterReplay."""

    def __init__(self, layer: int) -> None:
        self.layer, self.now = layer, None

    def get_replay_topk(
        self, scores: Tensor, topk: int, num_groups: int | None, group_topk: int | None, compute_topk: Any
    ) -> tuple[Tensor, Tensor]:
        """As Megatron calls it: the scores of each token's experts, and their numbers."""
        values_TK, own_TK = compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        if self.now is None:
            return values_TK, own_TK
        chosen_TK = self.now.choose(self.layer, own_TK)
        return (values_TK, own_TK) if chosen_TK is own_TK else (scores.gather(1, chosen_TK), chosen_TK)

    def enter(self, layer: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        """A layer's forward pass begins, for the first time or again."""
        self.now = getattr(keywords["packed_seq_params"], "routed", None)


class Routing:
    """This rank's part of it; does nothing with actor.routing_replay = "off"."""

    def __init__(self, actor: ActorConfig, hf: HFConfig, topology: Topology) -> None:
        self.mode, self._hf, self._topology = actor.routing_replay, hf, topology
        self._shares_tokens = actor.sequence_parallel
        self._layers: set[int] = set()  # with experts, of this rank's, counted from 0
        self._purpose: Purpose = "plain"
        self._recorded: dict[bytes, dict[int, Tensor]] = {}  # by microbatch
        self._differing = torch.zeros(2, dtype=torch.float64, device=topology.device)
        self._counts = False
        self._missing = np.zeros(2)  # tokens whose experts should be known and aren't, and all
        self._plain_gaps = np.empty(0, np.float32)

    def attach(self, chunks: Sequence[nn.Module]) -> None:
        """To the routers of a model.

        Raises:
            ReplayError: it can't be done with these settings of Megatron's.
        """
        if self.mode == "off":
            return
        layers = [layer for chunk in chunks for layer in chunk.modules() if isinstance(layer, TransformerLayer)]
        for layer in (layer for layer in layers if hasattr(layer.mlp, "router")):
            config, number = layer.config, layer.layer_number - 1
            computes_parts = {"moe", "mlp"} & set(config.recompute_modules or ())
            if config.moe_router_fusion or (config.recompute_granularity == "selective" and computes_parts):
                raise ReplayError(
                    "routing replay needs routers that are not fused, and layers that are computed again as a whole or "
                    'without their experts; set actor.recompute = "full" or "none"'
                )
            layer.mlp.router.router_replay = router = _Router(number)
            layer.register_forward_pre_hook(router.enter, with_kwargs=True)
            self._layers.add(number)

    @contextmanager
    def during(self, purpose: Purpose) -> Iterator[None]:
        """Passes in this block are for that purpose."""
        if purpose == "score":
            self._recorded = {}
        self._purpose = purpose
        try:
            yield
        finally:
            self._purpose = "plain"

    def prepare(self, microbatch: MicroBatch, pack: PackedTokens) -> None:
        """To be called before a microbatch's forward pass through each of this rank's chunks."""
        if (routed := self._routed(microbatch, pack)) is not None:
            pack.bounds.routed = routed

    def _routed(self, microbatch: MicroBatch, pack: PackedTokens) -> RoutedPass | None:
        differing = self._differing if self._counts else None
        if self.mode == "engine" and self._purpose != "plain":
            experts_TK, known_T = self._engines(microbatch, pack)
            return RoutedPass(experts_TK, known_T, differing=differing)
        if self.mode == "actor" and self._purpose in ("score", "train"):
            key = b"".join(s.token_ids_T.tobytes() + b"|" for s in microbatch.sequences)
            if self._purpose == "score":
                return RoutedPass(recorded_TK=self._recorded.setdefault(key, {}))
            if key not in self._recorded:
                if all(s.old_logprobs_A is None for s in microbatch.sequences):
                    return None  # of the first update, whose own pass is its scoring
                raise ReplayError(
                    'actor.routing_replay = "actor" replays what scoring has chosen, and a microbatch is trained on '
                    "that was not scored before; score the same batch first"
                )
            return RoutedPass(self._recorded[key], differing=differing)
        return None

    def _engines(self, microbatch: MicroBatch, pack: PackedTokens) -> tuple[dict[int, Tensor], Tensor]:
        """The engine's choice for the tokens that this rank routes, and which have one."""
        layers = sorted(self._layers)
        mixture, device = self._hf.mixture, self._topology.device
        dtype = np.uint8 if mixture.num_experts <= 256 else np.int16
        start, count = 0, max(sum(s.num_tokens for s in microbatch.sequences), int(pack.source_T.max()) + 1)
        experts, known = np.zeros((count, len(layers), mixture.experts_per_token), dtype), np.zeros(count, bool)
        for sequence in microbatch.sequences:
            rows_R = sequence.experts_R
            experts[start : start + len(rows_R)], known[start : start + len(rows_R)] = rows_R[:, layers], True
            start += sequence.num_tokens
        source_T = pack.source_T
        if self._shares_tokens:
            source_T = source_T.chunk(self._topology.tp_size)[self._topology.tp_rank]
        source_T = source_T.numpy()
        known_T = torch.from_numpy(known[source_T] & (source_T >= 0)).to(device)
        experts_TLK = torch.from_numpy(experts[source_T]).to(device)
        return {layer: experts_TLK[:, place] for place, layer in enumerate(layers)}, known_T

    # --- what is replayed, before the passes

    def agreed(self, microbatches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The microbatches with those experts that all ranks of this replica have got: a collective of them.

        Raises:
            ReplayError: a sequence says nothing of experts, or what it says is another model's.
        """
        if self.mode != "engine":
            return list(microbatches)
        sequences = [s for m in microbatches for s in m.sequences]
        for sequence in sequences:
            self._check(sequence.experts_R)
        rows = torch.tensor([len(s.experts_R) for s in sequences], device=self._topology.device, dtype=torch.int64)
        for group in (
            parallel_state.get_tensor_model_parallel_group(),
            parallel_state.get_context_parallel_group(),
            parallel_state.get_pipeline_model_parallel_group(),
        ):
            dist.all_reduce(rows, op=dist.ReduceOp.MIN, group=group)
        counts = iter(rows.tolist())
        found = [
            replace(m, sequences=tuple(replace(s, experts_R=s.experts_R[: next(counts)]) for s in m.sequences))
            for m in microbatches
        ]
        read = sum(s.num_tokens - 1 for s in sequences)
        self._missing += [read - int(rows.sum()), read]
        return found

    def _check(self, experts_R: Any) -> None:
        mixture = self._hf.mixture
        if not isinstance(experts_R, np.ndarray):
            raise ReplayError(
                'actor.routing_replay = "engine" replays the experts that the engine chose, and a sequence comes '
                'without; take batches of a run that replays them, or set "actor" or "off"'
            )
        expected = (self._hf.num_hidden_layers, mixture.experts_per_token)
        if experts_R.shape[1:] != expected or (experts_R.size and experts_R.max() >= mixture.num_experts):
            raise ReplayError(
                f"a sequence's experts are {list(experts_R.shape[1:])} a token, up to number "
                f"{experts_R.max(initial=0)}, and the model has {expected[0]} layers, {expected[1]} experts a token, "
                f"of {mixture.num_experts}; were they sampled by another model?"
            )

    # --- what a step is told of it

    def keep_plain_gaps(self, microbatches: Sequence[MicroBatch], logprobs: Sequence[Tensor]) -> None:
        """The log-probs that the model gives without replay, of some microbatches; none but on the last stage."""
        engine = [s.engine_logprobs_A for m in microbatches for s in m.sequences]
        if engine and logprobs:
            self._plain_gaps = np.abs(torch.cat(list(logprobs)).cpu().numpy() - np.concatenate(engine))

    def step_begins(self) -> None:
        """Of training: what is counted from here on is the step's."""
        self._differing.zero_()
        self._missing = np.zeros(2)

    def update_begins(self, number: int) -> None:
        """Of the step, from 0 on. The engine's choice is compared with the actor's at the step's first weights, that of
        scoring over all updates."""
        self._counts = self.mode == "actor" or (self.mode == "engine" and number == 0)

    def metrics(self) -> dict[str, float]:
        """Of the step; a collective of all ranks. What was recorded is forgotten."""
        if self.mode == "off":
            return {}
        self._recorded, self._counts = {}, False
        device = self._topology.device
        sums = torch.cat([self._differing, torch.from_numpy(self._missing).to(device)])
        dist.all_reduce(sums)
        differing, chosen, missing, read = sums.tolist()
        metrics = {"actor/experts_differ": differing / max(chosen, 1.0)}
        if self.mode == "engine":
            metrics["actor/experts_missing"] = missing / max(read, 1.0)
            parts: list[Any] = [None] * self._topology.dp_size
            dist.all_gather_object(parts, self._plain_gaps, group=parallel_state.get_data_parallel_group())
            gaps = np.concatenate(parts)
            self._plain_gaps = np.empty(0)
            if len(gaps):
                metrics["rollout/unreplayed_gap_mean"] = float(gaps.mean())
                metrics["rollout/unreplayed_gap_p99"] = float(np.quantile(gaps, 0.99))
        return metrics
