"""Microbatches through Megatron's pipeline schedule: scoring, and forward-backward of the loss.

The one place that normalises the loss. The NFT losses of all answer tokens are divided here by a number that belongs to
the whole optimizer update, over all microbatches and all data-parallel ranks:

    reduction "tokens":    the answer tokens of the update
    reduction "constant":  reduction_constant x the answers of the update

and from there on gradients are only ever summed (over microbatches by the schedule, over ranks by
DistributedDataParallel, see calculate_per_token_loss in actor/model.py). So neither microbatching, nor packing, nor any
parallel layout changes the loss or a gradient. Called by actor/worker.py.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_nft.actor.logprobs import label_logprobs
from megatron_nft.actor.packed import PackedTokens, pack_tokens
from megatron_nft.actor.topology import Topology
from megatron_nft.config import AlgorithmConfig
from megatron_nft.hf_config import HFConfig
from megatron_nft.nft.loss import nft_loss, ratio_metrics
from megatron_nft.types import MicroBatch


class Pipeline:
    """This rank's model in the schedule."""

    def __init__(
        self,
        model: DistributedDataParallel,
        hf: HFConfig,
        topology: Topology,
        algorithm: AlgorithmConfig,
        temperature: float,
    ) -> None:
        self.model, self.hf, self.topology = model, hf, topology
        self.algorithm, self.temperature = algorithm, temperature
        self._schedule = get_forward_backward_func()
        # Sums gradients of shared embeddings and sequence-parallel norms over their ranks; never divides by tokens.
        model.config.finalize_model_grads_func = lambda models, num_tokens=None, **groups: finalize_model_grads(
            models, None, **groups
        )

    def score(self, microbatches: Sequence[MicroBatch]) -> list[Tensor]:
        """Log-probs of the answer tokens, float32 [A] per microbatch; empty on all but the last stage."""
        self.model.eval()
        with torch.no_grad():
            logprobs = self._run(microbatches, denominator=1.0, forward_only=True)
        self.model.train()
        return logprobs

    def forward_backward(self, microbatches: Sequence[MicroBatch]) -> tuple[dict[str, float], float]:
        """Leaves the gradient of one update in the model's buffers.

        Returns:
            Metrics over the whole update on the last stage, equal on all its ranks (empty elsewhere), and the number
            of answer tokens behind them.
        """
        self.model.zero_grad_buffer()
        totals = self._totals(microbatches)
        algorithm = self.algorithm
        denominator = (
            totals["tokens"] if algorithm.reduction == "tokens" else algorithm.reduction_constant * totals["answers"]
        )
        sums = self._run(microbatches, denominator=denominator, forward_only=False)
        return (self._metrics(sums, totals) if self.topology.is_last_stage else {}), totals["tokens"]

    def _run(self, microbatches: Sequence[MicroBatch], *, denominator: float, forward_only: bool) -> list:
        return self._schedule(
            forward_step_func=partial(self._forward, denominator=denominator),
            data_iterator=iter(microbatches),
            model=[self.model],
            num_microbatches=len(microbatches),
            seq_length=1,  # shapes travel with the tensors (variable_seq_lengths)
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )

    def _forward(self, microbatches: Iterator[MicroBatch], model: torch.nn.Module, denominator: float):
        """Megatron's forward_step: one microbatch through this stage, and the loss function for its output."""
        multiple = self.topology.tp_size if model.config.sequence_parallel else 1
        pack = pack_tokens(next(microbatches), self.topology.device, multiple)
        output = model(
            input_ids=pack.token_ids_T[None],
            position_ids=pack.positions_T[None],
            attention_mask=None,
            packed_seq_params=pack.bounds,
        )

        def finish(logits: Tensor, non_loss_data: bool = False):
            logprobs_A = label_logprobs(
                logits[0, pack.logit_index_A],
                pack.labels_A,
                temperature=self.temperature,
                vocab_size=self.hf.vocab_size,
            )
            return logprobs_A if non_loss_data else self._loss(logprobs_A, pack, denominator)

        return output, finish

    def _loss(self, logprobs_A: Tensor, pack: PackedTokens, denominator: float):
        """(loss, number of tokens, sums for metrics); the number is of no use: the loss is normalised already."""
        algorithm = self.algorithm
        losses_A = pack.weights_A * nft_loss(
            logprobs_A,
            pack.old_logprobs_A,
            pack.verdicts_A,
            pack.correct_rates_A,
            neg_weight=algorithm.neg_weight,
            normalize=algorithm.normalize,
            clamp_negative=algorithm.clamp_negative,
            sequence_ids_T=pack.sequence_ids_A if algorithm.ratio_type == "sequence" else None,
        )
        loss = losses_A.sum() / denominator
        with torch.no_grad():
            sums = {
                "loss": loss.detach(),
                "loss_right": (losses_A * pack.verdicts_A).sum() / denominator,
                "loss_wrong": (losses_A * (1 - pack.verdicts_A)).sum() / denominator,
            }
            real = pack.weights_A > 0
            sums |= ratio_metrics(
                logprobs_A[real],
                pack.old_logprobs_A[real],
                pack.verdicts_A[real],
                pack.correct_rates_A[real],
                clamp_negative=algorithm.clamp_negative,
            )
        return loss, torch.ones((), dtype=torch.int, device=loss.device), sums

    def _totals(self, microbatches: Sequence[MicroBatch]) -> dict[str, float]:
        sequences = [s for microbatch in microbatches for s in microbatch.sequences]
        totals = torch.tensor(
            [sum(s.num_answer_tokens for s in sequences), len(sequences), sum(s.num_tokens for s in sequences)],
            dtype=torch.float64,
            device=self.topology.device,
        )
        dist.all_reduce(totals, group=parallel_state.get_data_parallel_group())
        return dict(zip(("tokens", "answers", "all_tokens"), totals.tolist(), strict=True))

    def _metrics(self, microbatch_sums: list[dict[str, Tensor]], totals: dict[str, float]) -> dict[str, float]:
        names = sorted(microbatch_sums[0])
        table = torch.stack([torch.stack([sums[name] for name in names]) for sums in microbatch_sums])
        summed, highest = table.sum(0), table.amax(0)
        dist.all_reduce(summed, group=parallel_state.get_data_parallel_group())
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group())
        value = dict(zip(names, summed.tolist(), strict=True))
        return {
            "nft/loss": value["loss"],
            "nft/loss_right": value["loss_right"],
            "nft/loss_wrong": value["loss_wrong"],
            "nft/ratio_mean": value["ratio_sum"] / totals["tokens"],
            "nft/ratio_max": highest[names.index("ratio_max")].item(),
            "nft/clamped_fraction": value["clamped"] / max(value["wrong_tokens"], 1.0),
            "actor/tokens": totals["all_tokens"],
        }
