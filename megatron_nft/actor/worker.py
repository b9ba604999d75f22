"""One rank's verbs: score, train_step, send_bucket, save_hf, begin_save, finish_save, load, offload, reload.

Microbatches come in, log-probs and metrics go out. Every verb is a collective: all ranks call it in the same order, and
the ranks that have something to say return it, the others None. cluster/ranks.py runs one Worker per process.
"""

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import save_file

from megatron_nft.actor.adapter_record import adapter_record
from megatron_nft.actor.checkpoint import Save, begin_save, load_checkpoint, load_weights
from megatron_nft.actor.hf_weights import load_hf_weights, named_shards
from megatron_nft.actor.lora import base_alone, deltas, named_adapters
from megatron_nft.actor.manifest import damages, read_manifest
from megatron_nft.actor.model import build_chunks, build_model
from megatron_nft.actor.optimizer import build_optimizer
from megatron_nft.actor.performance import finish_param_gather, hold_back_reductions, tokens_of_a_pass
from megatron_nft.actor.pipeline import Pipeline
from megatron_nft.actor.precision import PRECISIONS, check_device
from megatron_nft.actor.routing import Routing
from megatron_nft.actor.topology import address_toward, destroy_topology, init_topology, stage_group
from megatron_nft.config import Config
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.lora import Adapters, adapter_table
from megatron_nft.families.registry import table_of
from megatron_nft.observe.metrics import reduce_metrics
from megatron_nft.types import MicroBatch
from megatron_nft.weights.base_digest import digests, whole_digest
from megatron_nft.weights.carriers import make_sender
from megatron_nft.weights.gather import gather_bucket
from megatron_nft.weights.plan import Bucket, WeightPlan, plan_weights
from megatron_nft.weights.wire import Sender


class Worker:
    """A Megatron rank with its model, optimizer and place in the layout."""

    def __init__(self, config: Config, *, rank: int, master: str) -> None:
        self.config = config
        self.topology = init_topology(
            config.actor, rank=rank, master=master, device=config.cluster.device, seed=config.run.seed
        )
        if self.topology.device.type == "cuda":
            check_device(config.actor.precision, torch.cuda.get_device_capability(), torch.cuda.get_device_name())
        self.hf = read_hf_config(config.model.path)
        self.model = build_model(self.hf, config.actor, self.topology, config.lora, seed=config.run.seed)
        if config.model.is_megatron:
            load_weights(Path(config.model.path), self.model)
        else:
            load_hf_weights(self.model, config.model.path, self.hf, self.topology)
        hold_back_reductions(self.model)
        self.optimizer, self.schedule = build_optimizer(
            self.model,
            config.optimizer,
            config.actor,
            config.train.updates_per_step,
            num_updates=config.train.steps * config.train.updates_per_step,
        )
        self.routing = Routing(config.actor, self.hf, self.topology)
        self.routing.attach(self.model)
        self.pipeline = Pipeline(
            self.model,
            self.hf,
            self.topology,
            config.algorithm,
            config.rollout,
            measures_entropy=config.observe.entropy,
            token_multiple=tokens_of_a_pass(config.actor),
            logits_bytes=config.actor.logits_mib << 20,
            routing=self.routing,
            moe_aux_loss_coeff=config.actor.moe_aux_loss_coeff,
        )
        self.reference: list[torch.nn.Module] | None = None
        if config.algorithm.kl_weight and config.model.reference is not None and not config.base_is_reference:
            self.reference = [c.requires_grad_(False) for c in build_chunks(self.hf, config.actor, self.topology)]
            load_hf_weights(self.reference, config.model.reference, self.hf, self.topology)
            self.routing.attach(self.reference)
        mib = config.weights.bucket_mib
        plan = partial(
            plan_weights,
            places=self.topology.stage_places,
            dtype=getattr(torch, config.rollout.dtype),
            bucket_bytes=mib and (mib << 20) // self.topology.pp_size,
        )
        self.plan = plan(list(named_shards(self.model, self.hf)), table_of(self.hf), deltas=deltas(self.model))
        self.adapter_plan: WeightPlan | None = None
        self._adapter_record: dict[str, Any] | None = None
        if (adapters := config.lora.adapters) is not None:
            self.adapter_plan = plan(list(named_adapters(self.model)), adapter_table(self.hf, adapters))
            self._adapter_record = self._read_adapter_record(adapters)
        self._sent = self.adapter_plan if self.adapter_plan and config.syncs_adapter else self.plan
        self._owns_weights = self.topology.holds_stage
        self._stage_group = stage_group()  # at plan.places
        self._host = address_toward(master)
        self._sender: Sender | None = None
        self._save: Save | None = None
        self._first_logprobs: list[np.ndarray] | None = None
        # Collections look at what training makes, not at half a million objects of the imports: Megatron-Core calls
        # for one, of 0.2 s, in every save.
        gc.collect()
        gc.freeze()

    def score(self, microbatches: Sequence[MicroBatch]) -> list[np.ndarray] | None:
        """Old log-probs, float32 [A] per sequence in order, from the rank that speaks for its replica."""
        microbatches = self.routing.agreed(microbatches)
        return self._by_sequence(microbatches, self.pipeline.score(microbatches))

    def score_reference(self, microbatches: Sequence[MicroBatch]) -> list[np.ndarray] | None:
        """As `score`, under the frozen reference model: one of its own, or the model without its adapters. Needs
        algorithm.kl_weight."""
        microbatches = self.routing.agreed(microbatches)
        with base_alone(self.model) if self.reference is None else nullcontext():
            return self._by_sequence(microbatches, self.pipeline.score(microbatches, self.reference, "reference"))

    def _by_sequence(self, microbatches: Sequence[MicroBatch], logprobs: list[torch.Tensor]) -> list[np.ndarray] | None:
        if not self.topology.speaks:
            return None
        scores = []
        for microbatch, logprobs_A in zip(microbatches, logprobs, strict=True):
            lengths = [s.num_answer_tokens for s in microbatch.sequences]
            if lengths:
                scores += np.split(logprobs_A.cpu().numpy(), np.cumsum(lengths)[:-1])
        return scores

    def train_step(self, updates: Sequence[Sequence[MicroBatch]], step: int | None = None) -> dict[str, float] | None:
        """One optimizer update per element; the updates' metrics reduced to one dict, from the rank that speaks.

        `step` is the rollout step, from 1, by which schedules go. None: as many as the updates before make, at
        train.updates_per_step each.

        The first update's sequences need no old log-probs: they are those of its forward pass, see `first_logprobs`.
        The later ones' have to be `score`'s, of before the step.

        An update whose gradient is not finite never reaches the weights: it is left out if optimizer.skip_nonfinite,
        else it is the last. "actor/nonfinite_updates" counts them.
        """
        if any(s.old_logprobs_A is None for update in updates[1:] for m in update for s in m.sequences):
            raise ValueError("old_logprobs of a later update are not known; score all but the first before the step")
        reports, num_tokens = [], []
        self.routing.step_begins()
        updates = [self.routing.agreed(update) for update in updates]
        if self.routing.mode == "engine":  # what replay is good for, on a sample
            sample = updates[0][:1]
            self.routing.keep_plain_gaps(sample, self.pipeline.score(sample, purpose="plain"))
        for number, microbatches in enumerate(updates):
            self.routing.update_begins(number)
            self.pipeline.step = self.schedule.begin_update(step)
            metrics, answer_tokens, logprobs = self.pipeline.forward_backward(microbatches)
            if not reports:
                self._first_logprobs = self._by_sequence(microbatches, logprobs)
            metrics["actor/learning_rate"] = self.optimizer.param_groups[0]["lr"]
            is_finite = self._is_finite(metrics.get("nft/loss", 0.0))
            metrics["actor/nonfinite_updates"] = float(not is_finite)
            if is_finite:
                _, norm, _ = self.optimizer.step()
                metrics["actor/grad_norm"] = float(norm)  # with TransformerEngine a tensor on the device
                metrics["actor/clipped_updates"] = float(metrics["actor/grad_norm"] > self.config.optimizer.grad_clip)
            reports.append(metrics)
            num_tokens.append(answer_tokens)
            if not is_finite and not self.config.optimizer.skip_nonfinite:
                break
        finish_param_gather(self.model)
        routing = self.routing.metrics()
        if not self.topology.speaks or self.topology.dp_rank != 0:
            return None
        return reduce_metrics(reports, num_tokens) | routing

    def first_logprobs(self) -> list[np.ndarray] | None:
        """As `score` would have said of the last step's first update, before it: the log-probs of its forward pass."""
        return self._first_logprobs

    def _is_finite(self, loss: float) -> bool:
        """Whether the loss and every rank's gradient are: the same answer on all ranks.

        The loss is asked, too: where it is not a number, clamps can leave a gradient that is one.
        """
        buffers = [b for chunk in self.model for b in (*chunk.buffers, *chunk.expert_parallel_buffers)]
        largest = [torch.linalg.vector_norm(b.grad_data.float(), torch.inf) for b in buffers]
        broken = (~(torch.stack(largest).sum() + loss).isfinite()).float()
        dist.all_reduce(broken, op=dist.ReduceOp.MAX)  # all ranks
        return broken.item() == 0

    def weight_names(self) -> list[str] | None:
        """HF names of all tensors that this rank's stage sends, from its leader."""
        return self._sent.hf_names if self._leads else None

    def num_rounds(self) -> int:
        """How often `send_bucket` is to be called in a sync, as far as this rank can tell."""
        return self._open_sender().num_rounds if self._sends else 0

    def send_bucket(self, index: int, link: int) -> dict | None:
        """Puts one bucket of this stage on the wire (weights/wire.py, `Sender.send`); its manifest, from the leader.

        A collective of the ranks that send; the others need not call it. `index` beyond this stage's buckets: None.
        """
        if not self._sends:
            return None
        manifest = self._open_sender().send(index, link)
        return manifest.to_dict() if manifest and self._leads else None

    def save_hf(self, folder: str) -> dict[str, str] | None:
        """Writes this stage's weights as safetensors files into `folder`; HF name -> file name, from its leader.

        Adapters are added to them."""
        return self._save_tensors(self.plan, folder)

    def save_adapter(self, folder: str) -> dict[str, str] | None:
        """As `save_hf`, the adapters alone, under PEFT's names."""
        assert self.adapter_plan is not None, "the run trains no adapters"
        return self._save_tensors(self.adapter_plan, folder)

    def _save_tensors(self, plan: WeightPlan, folder: str) -> dict[str, str] | None:
        weight_map: dict[str, str] = {}
        dtype = PRECISIONS[self.config.actor.precision].dtype
        for index, bucket in enumerate(plan.buckets):
            if tensors := self._gather(bucket, dtype):
                name = f"model-{index * self.topology.pp_size + self.topology.pp_rank:05d}.safetensors"
                save_file({key: tensor.cpu() for key, tensor in tensors.items()}, Path(folder) / name, {"format": "pt"})
                weight_map |= dict.fromkeys(tensors, name)
        return weight_map if self._leads else None

    def begin_save(self, folder: str, step: int, policy_version: int) -> None:
        """Copies this rank's state, and begins to write it into `folder`, in a thread; after at least one update."""
        self._save = begin_save(
            Path(folder),
            self.model,
            self.optimizer,
            self.schedule,
            self.topology,
            step=step,
            policy_version=policy_version,
            adapter=self._adapter_record,
        )

    def save_state(self) -> tuple[bool, str | None]:
        """Whether this rank's files of the save are written, and why they can't be."""
        assert self._save is not None, "no save has begun"
        return (True, self._save.error) if self._save.is_written else (False, None)

    def finish_save(self) -> None:
        """Completes the save, where no driver does."""
        assert self._save is not None, "no save has begun"
        self._save.finish()

    def save(self, folder: str, *, step: int = 0, policy_version: int = 0) -> None:
        """All of a save, without the driver: for who holds the ranks themselves, as under torchrun."""
        self.begin_save(folder, step, policy_version)
        self.finish_save()

    def load(self, folder: str) -> None:
        """Goes on from a save, made in this layout or another. Raises CheckpointError."""
        load_checkpoint(Path(folder), self.model, self.optimizer, self.schedule, self.topology, self._adapter_record)

    def damages(self, folder: str, names: Sequence[str]) -> list[str]:
        """What is wrong with these files of a checkpoint. No collective."""
        return damages(Path(folder), read_manifest(Path(folder)), names)

    def offload(self) -> None:
        """Moves what only training needs off the GPU: gradients are dropped, the optimizer's state goes to the host.

        With optimizer_cpu_offload it is there, and Megatron would bring to the GPU what is to be updated on the host.
        """
        for chunk in self.model:
            chunk.offload_grad_buffers()
        if not self.config.optimizer.optimizer_cpu_offload:
            self.optimizer.offload_to_cpu()

    def reload(self) -> None:
        """Undoes `offload`, before the next update. Fine if nothing is offloaded."""
        for chunk in self.model:
            chunk.restore_grad_buffers()
        if not self.config.optimizer.optimizer_cpu_offload:
            self.optimizer.restore_from_cpu()

    def shutdown(self) -> None:
        """Leaves the process groups, and gives the wire's memory back, and the model's."""
        if self._sender is not None:
            self._sender.close()
        for chunk in self.model:  # its gradients' hooks hold it, in a circle through C++ that no collector sees
            chunk.grad_accs.clear()
        destroy_topology()

    def _read_adapter_record(self, adapters: Adapters) -> dict[str, Any]:
        """What a checkpoint says of its adapters. A collective of all ranks, which read a share each of the model's
        files: as they have just done."""
        folder, parts = Path(self.config.model.path), [{}] * dist.get_world_size()
        dist.all_gather_object(parts, digests(folder, dist.get_rank(), len(parts)))
        return adapter_record(adapters, base=str(folder), base_digest=whole_digest(folder, parts))

    @property
    def _leads(self) -> bool:
        """Whether this rank speaks for its stage's weights: one of those that own them."""
        return self._owns_weights and dist.get_rank(self._stage_group) == 0

    @property
    def _sends(self) -> bool:
        return self._owns_weights or self.config.carrier_traits.every_rank_sends

    def _open_sender(self) -> Sender:
        """Made at the first call, a collective of the ranks that send."""
        if self._sender is None:
            self._sender = make_sender(
                self.config,
                self._sent,
                stage=self.topology.pp_rank,
                group=self._stage_group,
                pp_group=parallel_state.get_pipeline_model_parallel_group(),
                device=self.topology.device,
                host=self._host,
            )
        return self._sender

    def _gather(self, bucket: Bucket, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """HF tensors of one bucket on the stage's leader, an empty dict elsewhere."""
        if not self._owns_weights:
            return {}
        tensors = bucket.empty_tensors(dtype, self.topology.device) if self._leads else None
        gather_bucket(bucket, self.plan.places, tensors, dtype=dtype, group=self._stage_group)
        return tensors or {}
