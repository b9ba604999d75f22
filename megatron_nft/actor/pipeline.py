"""Microbatches through Megatron's pipeline schedule: scoring, and forward-backward of the loss.

The one place that normalises the loss. The losses of all answer tokens are divided here by a number that belongs to
the whole optimizer update, over all microbatches and all data-parallel ranks:

    reduction "tokens":     the answer tokens of the update
    reduction "sequences":  the answers of the update, each token's loss divided by its answer's tokens before
    reduction "constant":   reduction_constant (or the longest answer allowed) x the answers of the update
    reduction "published":  1000 x published_ranks, the data-parallel ranks of the NFT authors' run

(tokens and answers without those that a correction rejects, nft/corrections.py)

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

from megatron_nft.actor.context import gather_answers
from megatron_nft.actor.logprobs import label_logprobs
from megatron_nft.actor.model import output_weight
from megatron_nft.actor.packed import PackedTokens, pack_tokens
from megatron_nft.actor.routing import Purpose, Routing
from megatron_nft.actor.topology import Topology
from megatron_nft.config import AlgorithmConfig, RolloutConfig
from megatron_nft.families.hf_config import HFConfig
from megatron_nft.nft.centering import TOP_IDS, TOP_LOGPROBS, centering
from megatron_nft.nft.corrections import correction, cut_tokens
from megatron_nft.nft.loss import kl_divergence, ratio_metrics, sums_by_answer
from megatron_nft.nft.methods import method_of
from megatron_nft.types import MicroBatch, TrainSequence

SHARED_METRICS = {
    "nft/logprob_right": ("right_logprobs", "right_tokens"),
    "nft/logprob_wrong": ("wrong_logprobs", "wrong_tokens"),
    "nft/moved_right": ("right_moved", "right_tokens"),
    "nft/moved_wrong": ("wrong_moved", "wrong_tokens"),
    "nft/kl": ("kl", "tokens"),
    "nft/entropy": ("entropy", "tokens"),
    "nft/truncated_fraction": ("truncated", "tokens"),
    "nft/masked_fraction": ("masked", "tokens"),
    "nft/rejected_fraction": ("rejected", "tokens"),
    "rollout/top_mass": ("top_mass", "tokens"),
}
"""Of all methods, where there are such sums, as `Method.metrics` are."""
LOGPROBS = "logprobs_A"
"""What each microbatch's sums have besides sums."""
PUBLISHED_DIVISOR = 1000.0
"""What the NFT authors' code divides the sum of token losses by, on each of its data-parallel ranks."""


class Pipeline:
    """This rank's model (a chunk per virtual stage) in the schedule."""

    def __init__(
        self,
        model: list[DistributedDataParallel],
        hf: HFConfig,
        topology: Topology,
        algorithm: AlgorithmConfig,
        rollout: RolloutConfig,
        *,
        measures_entropy: bool,
        token_multiple: int,
        logits_bytes: int,
        routing: Routing,
        moe_aux_loss_coeff: float = 0.0,
    ) -> None:
        self.model, self.hf, self.topology = model, hf, topology
        self.algorithm, self.rollout = algorithm, rollout
        self.measures_entropy, self.token_multiple = measures_entropy, token_multiple
        self.logits_bytes, self.moe_aux_loss_coeff, self.routing = logits_bytes, moe_aux_loss_coeff, routing
        self.step = 1
        """The rollout step, by which the algorithm's schedules go; set by who trains."""
        self._schedule = get_forward_backward_func()
        # Sums gradients of shared embeddings and sequence-parallel norms over their ranks; never divides by tokens.
        model[0].config.finalize_model_grads_func = lambda models, num_tokens=None, **groups: finalize_model_grads(
            models, None, **groups
        )

    def score(
        self,
        microbatches: Sequence[MicroBatch],
        model: list[torch.nn.Module] | None = None,
        purpose: Purpose = "score",
    ) -> list[Tensor]:
        """Log-probs of the answer tokens, float32 [A] per microbatch; empty on all but the last stage.

        Args:
            model: another model of the same shape to score with, such as the frozen reference.
            purpose: what routing replay is told (routing.py).
        """
        model = model or self.model
        for chunk in model:
            chunk.eval()
        with torch.no_grad(), self.routing.during(purpose):
            logprobs = self._run(microbatches, model, denominator=1.0, forward_only=True)
        for chunk in model:
            chunk.train()
        return logprobs[: len(microbatches)]

    def forward_backward(self, microbatches: Sequence[MicroBatch]) -> tuple[dict[str, float], float, list[Tensor]]:
        """Leaves the gradient of one update in the model's buffers.

        Microbatches without old log-probs have those of this very pass: the weights that they are to be of are those
        of a step's first update.

        Returns:
            Metrics over the whole update on the last stage, equal on all its ranks (empty elsewhere), the number of
            answer tokens behind them, and the log-probs of this pass, as `score` gives them.
        """
        for chunk in self.model:
            chunk.zero_grad_buffer()
        totals = self._totals(microbatches)
        if self.moe_aux_loss_coeff:  # Megatron multiplies a microbatch's by its tokens, and nothing divides by them
            self.model[0].config.moe_aux_loss_coeff = self.moe_aux_loss_coeff / totals["all_tokens"]
        with self.routing.during("train"):
            sums = self._run(microbatches, self.model, denominator=self._denominator(totals), forward_only=False)
        logprobs = [of_microbatch.pop(LOGPROBS) for of_microbatch in sums][: len(microbatches)]
        return (self._metrics(sums, totals) if self.topology.is_last_stage else {}), totals["tokens"], logprobs

    def _denominator(self, totals: dict[str, float]) -> float:
        """What the sum of all token losses of the update is divided by."""
        constant = self.algorithm.reduction_constant or self.rollout.max_answer_tokens
        return {
            "tokens": totals["kept_tokens"],
            "sequences": totals["kept_answers"],
            "constant": constant * totals["kept_answers"],
            "published": PUBLISHED_DIVISOR * (self.algorithm.published_ranks or 1),
        }[self.algorithm.reduction]

    def _run(
        self,
        microbatches: Sequence[MicroBatch],
        model: list[torch.nn.Module],
        *,
        denominator: float,
        forward_only: bool,
    ) -> list:
        if len(model) > 1:  # the interleaved schedule takes rounds of pp microbatches; empty ones weigh nothing
            missing = -len(microbatches) % self.topology.pp_size
            microbatches = [*microbatches, *[microbatches[0].emptied] * missing]
        iterators = [iter(microbatches) for _ in model]
        return self._schedule(
            forward_step_func=partial(self._forward, denominator=denominator),
            data_iterator=iterators if len(model) > 1 else iterators[0],
            model=model,
            num_microbatches=len(microbatches),
            seq_length=1,  # shapes travel with the tensors (variable_seq_lengths)
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )

    def _forward(self, microbatches: Iterator[MicroBatch], model: torch.nn.Module, denominator: float):
        """Megatron's forward_step: one microbatch through this stage, and the loss function for its output."""
        microbatch = next(microbatches)
        pack = pack_tokens(microbatch, self.topology, self.token_multiple)
        self.routing.prepare(microbatch, pack)
        output = model(
            input_ids=pack.token_ids_T[None],
            position_ids=pack.positions_T[None],
            attention_mask=None,
            packed_seq_params=pack.bounds,
        )

        def finish(hidden: Tensor, non_loss_data: bool = False):
            centres = self.algorithm.score_centering and not non_loss_data
            logprobs_O, entropies_O = label_logprobs(
                hidden[0, pack.logit_index_O],
                output_weight(model),
                pack.labels_and(TOP_IDS) if centres else pack.labels_O,
                temperature=self.rollout.temperature,
                vocab_size=self.hf.vocab_size,
                group=parallel_state.get_tensor_model_parallel_group(),
                logits_bytes=self.logits_bytes,
                with_entropy=self.measures_entropy and not non_loss_data,
            )
            logprobs_A, top_AK = self._all_answers(logprobs_O, pack), None
            if centres:
                logprobs_A, top_AK = logprobs_A[:, 0], logprobs_A[:, 1:]
            if non_loss_data:
                return logprobs_A
            scored = pack if pack.is_scored else pack.with_old_logprobs(logprobs_A)
            loss, sums = self._loss(logprobs_A, top_AK, scored, denominator)
            sums[LOGPROBS] = logprobs_A.detach()
            if entropies_O is not None:
                sums["entropy"] = (pack.weights_A * self._all_answers(entropies_O, pack)).sum()
            # Megatron wants a number of tokens. It is of no use: the loss is normalised already.
            return loss, torch.ones((), dtype=torch.int, device=loss.device), sums

        return output, finish

    def _all_answers(self, values_O: Tensor, pack: PackedTokens) -> Tensor:
        """From here on every context-parallel rank has all answer tokens, and computes the same loss of them."""
        return values_O if self.topology.cp_size == 1 else gather_answers(values_O, pack.gather_A, pack.gather_most)

    def _loss(
        self, logprobs_A: Tensor, top_AK: Tensor | None, pack: PackedTokens, denominator: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The microbatch's share of the update's loss, and sums for metrics."""
        algorithm, method = self.algorithm.at_step(self.step), method_of(self.algorithm)
        columns, corrections = pack.take(method.takes), algorithm.all_corrections
        verdicts_A, rates_A, old_A, engine_A, reference_A, ids_A = pack.take(
            ("verdict", "correct_rate", "old_logprobs", "engine_logprobs", "reference_logprobs", "sequence_id")
        ).values()
        real, weights_A, lengths_A = pack.weights_A > 0, pack.weights_A, pack.answer_tokens_A
        losses_A = method.losses(logprobs_A, columns, algorithm)
        sums: dict[str, Tensor] = {}
        if top_AK is not None:
            (engine_AK,) = pack.take([TOP_LOGPROBS]).values()
            losses_A = losses_A + centering(top_AK, engine_AK, columns, method, algorithm)
            sums["top_mass"] = (weights_A * engine_AK.exp().sum(1)).sum()
        if corrections:
            given = (old_A, engine_A, ids_A)
            ratios_A, kept_A = correction(*given, corrections)
            losses_A, weights_A = losses_A * ratios_A, weights_A * kept_A
            lengths_A = sums_by_answer(kept_A.float(), ids_A).clamp(min=1) if algorithm.rejects else lengths_A
            sums |= cut_tokens(*(x[real] for x in given), corrections)
        if algorithm.reduction == "sequences":
            weights_A = weights_A / lengths_A
        losses_A = weights_A * losses_A
        loss = losses_A.sum() / denominator
        sums |= {
            "loss_right": (losses_A.detach() * verdicts_A).sum() / denominator,
            "loss_wrong": (losses_A.detach() * (1 - verdicts_A)).sum() / denominator,
        }
        if algorithm.kl_weight:
            kl_A = kl_divergence(logprobs_A, reference_A)
            loss = loss + algorithm.kl_weight * (weights_A * kl_A).sum() / denominator
            sums["kl"] = (pack.weights_A * kl_A.detach()).sum()
        sums |= {"loss": loss.detach(), **_pushes(loss, logprobs_A)}
        now_A = logprobs_A.detach()[real]
        sums |= ratio_metrics(
            now_A, old_A[real], verdicts_A[real], rates_A[real], clamp_negative=algorithm.clamp_negative
        )
        sums |= method.sums(now_A, {name: column[real] for name, column in columns.items()}, algorithm)
        return loss, sums

    def _totals(self, microbatches: Sequence[MicroBatch]) -> dict[str, float]:
        sequences = [s for microbatch in microbatches for s in microbatch.sequences]
        kept = [_num_kept(s, self.algorithm) for s in sequences]
        counts = {
            "tokens": sum(s.num_answer_tokens for s in sequences),
            "answers": len(sequences),
            "all_tokens": sum(s.num_tokens for s in sequences),
            "kept_tokens": sum(kept),
            "kept_answers": sum(number > 0 for number in kept),
        }
        totals = torch.tensor(list(counts.values()), dtype=torch.float64, device=self.topology.device)
        dist.all_reduce(totals, group=parallel_state.get_data_parallel_group())
        found = dict(zip(counts, totals.tolist(), strict=True))
        return found | {name: max(found[name], 1.0) for name in ("kept_tokens", "kept_answers")}

    def _metrics(self, microbatch_sums: list[dict[str, Tensor]], totals: dict[str, float]) -> dict[str, float]:
        names = sorted(microbatch_sums[0])
        table = torch.stack([torch.stack([sums[name] for name in names]) for sums in microbatch_sums])
        summed, highest = table.sum(0), table.amax(0)
        dist.all_reduce(summed, group=parallel_state.get_data_parallel_group())
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group())
        value = dict(zip(names, summed.tolist(), strict=True))
        metrics = {
            "nft/loss": value["loss"],
            "nft/loss_right": value["loss_right"],
            "nft/loss_wrong": value["loss_wrong"],
            "nft/ratio_mean": value["ratio_sum"] / totals["tokens"],
            "nft/ratio_max": highest[names.index("ratio_max")].item(),
            "actor/tokens": totals["all_tokens"],
            "nft/mass_up": value["up"],
            "nft/mass_down": value["down"],
        }
        own = {name: parts for name, parts in SHARED_METRICS.items() if parts[0] in value}
        for name, (total, count) in {**own, **method_of(self.algorithm).metrics}.items():
            metrics[name] = value[total] / max((totals | value)[count], 1.0)
        return metrics


def _num_kept(sequence: TrainSequence, algorithm: AlgorithmConfig) -> int:
    """Its answer tokens that no correction rejects."""
    if not algorithm.rejects:
        return sequence.num_answer_tokens
    old_A, engine_A = torch.tensor(sequence.old_logprobs_A), torch.tensor(sequence.engine_logprobs_A)
    _, kept_A = correction(old_A, engine_A, torch.zeros(len(old_A), dtype=torch.int64), algorithm.all_corrections)
    return int(kept_A.sum())


def _pushes(loss: Tensor, logprobs_A: Tensor) -> dict[str, Tensor]:
    """How strongly the loss pushes answer tokens up, and how strongly down."""
    (slopes_A,) = torch.autograd.grad(loss, logprobs_A, retain_graph=True)
    return {"up": (-slopes_A).clamp(min=0).sum(), "down": slopes_A.clamp(min=0).sum()}
