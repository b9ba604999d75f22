"""The whole recipe, and the checks that need several of its sections; what a section's own settings say together is
checked beside them."""

from collections.abc import Iterator
from pathlib import Path

from megatron_nft.config.actor import ActorConfig
from megatron_nft.config.algorithm import AlgorithmConfig
from megatron_nft.config.carriers import CARRIERS, CarrierTraits
from megatron_nft.config.checkpoint import CheckpointConfig
from megatron_nft.config.cluster import ClusterConfig
from megatron_nft.config.data import DataConfig
from megatron_nft.config.evaluate import EvaluateConfig
from megatron_nft.config.lora import ENGINE_RANKS, LoraConfig
from megatron_nft.config.methods import SFT
from megatron_nft.config.model import ModelConfig
from megatron_nft.config.observe import ObserveConfig
from megatron_nft.config.optimizer import OptimizerConfig
from megatron_nft.config.rollout import RolloutConfig
from megatron_nft.config.run import RunConfig
from megatron_nft.config.section import Section
from megatron_nft.config.sft import SftConfig
from megatron_nft.config.train import TrainConfig
from megatron_nft.config.verdict import VerdictConfig
from megatron_nft.config.vllm_settings import refused_on_a_cpu
from megatron_nft.config.weights import WeightsConfig


class Config(Section):
    """The whole recipe. Sections are handed to the functions that use them."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    verdict: VerdictConfig = VerdictConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    actor: ActorConfig = ActorConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    weights: WeightsConfig = WeightsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    train: TrainConfig = TrainConfig()
    sft: SftConfig = SftConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    observe: ObserveConfig = ObserveConfig()

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir) / self.run.name

    @property
    def max_sequence_tokens(self) -> int:
        return self.data.max_prompt_tokens + self.rollout.max_answer_tokens

    @property
    def is_colocated(self) -> bool:
        return self.cluster.placement == "colocated"

    @property
    def evaluates_in_background(self) -> bool:
        """While the actor trains. Where engines then sleep, it is beside the rollouts, if anywhere."""
        return self.evaluate.in_background and not self.is_colocated

    @property
    def carrier(self) -> str:
        """weights.carrier, with "auto" resolved."""
        if self.weights.carrier != "auto":
            return self.weights.carrier
        if self.cluster.device == "cpu":
            return "shared_memory"
        return "cuda_ipc" if self.is_colocated else "collective"

    @property
    def syncs_adapter(self) -> bool:
        """lora.sync, with "auto" resolved: the engines get adapters alone."""
        if not self.lora.rank or self.lora.sync != "auto":
            return bool(self.lora.rank) and self.lora.sync == "adapter"
        fits = self.lora.rank <= ENGINE_RANKS[-1] and not self.model.is_megatron
        return fits and self.cluster.device == "cuda"

    @property
    def base_is_reference(self) -> bool:
        """The loss's reference is the model without its adapters: no second copy is loaded."""
        given = self.model.reference
        return bool(self.lora.rank) and (given is None or Path(given).resolve() == Path(self.model.path).resolve())

    @property
    def canary_gap(self) -> float:
        """weights.canary_gap, with its default resolved: bf16 rounds log-probs by 0.01 nats and more."""
        return self.weights.canary_gap or (1e-3 if self._is_exact else 0.1)

    def trains_on_older(self, *, is_ahead: bool) -> bool:
        """Answers, or some of them, are older than the policy that trains on them: in a run that samples ahead, and in
        one whose tails go on."""
        return is_ahead or self.rollout.tail == "keep"

    def gap_bound(self, *, is_ahead: bool, has_experts: bool = False) -> float:
        """observe.gap_bound, with its default resolved; 0: none.

        Args:
            is_ahead: as in `trains_on_older`.
            has_experts: the model has, which engine and actor choose differently where rounding decides.
        """
        if self.observe.gap_bound is not None:
            return self.observe.gap_bound
        if self.trains_on_older(is_ahead=is_ahead) or self.rollout.top_p < 1:
            return 0.0
        if self._is_exact:
            return 1e-6
        return 1e-2 if self._is_quantized else 5e-3 if has_experts else 1e-3

    @property
    def _is_exact(self) -> bool:
        is_fp32 = self.actor.precision == "fp32" and self.rollout.dtype == "float32"
        return is_fp32 and not self._is_quantized

    @property
    def _is_quantized(self) -> bool:
        """Actor or engine compute, or keep keys and values, in 8 bits or fewer."""
        vllm = self.rollout.vllm
        of_cache = str(vllm.get("kv_cache_dtype", "auto")).startswith(("fp8", "int", "nvfp4"))
        return self.actor.precision.startswith("fp8") or vllm.get("quantization") is not None or of_cache

    @property
    def replays_engine(self) -> bool:
        """Engines say which experts their tokens went to."""
        return self.actor.routing_replay == "engine"

    @property
    def carrier_traits(self) -> CarrierTraits:
        """What that carrier does."""
        return CARRIERS[self.carrier]

    def problems(self) -> Iterator[str]:
        """What the sections' settings can't be together."""
        yield from self._check_ranks()
        yield from self._check_log_probs()
        yield from self._check_lora()
        yield from self.gap_problems(is_ahead=False)
        if self.algorithm.kl_weight and self.model.reference is None and not self.lora.rank:
            yield (
                f"algorithm.kl_weight = {self.algorithm.kl_weight:g} needs a reference model; set model.reference to "
                f"an HF folder (usually model.path, {self.model.path!r}), or kl_weight = 0"
            )
        if self.actor.routing_replay == "actor" and self.algorithm.old_logprobs == "engine":
            yield (
                'actor.routing_replay = "actor" replays the choice of the actor\'s scoring, and there is none with '
                'algorithm.old_logprobs = "engine"; set routing_replay = "engine", or old_logprobs = "actor"'
            )
        if self.algorithm.name == SFT and self.actor.routing_replay != "off":
            yield (
                f'actor.routing_replay = "{self.actor.routing_replay}" replays the experts of sampled answers, and '
                f'given ones (algorithm.name = "{SFT}") have none; leave it out'
            )
        num_updates = self.train.steps * self.train.updates_per_step
        if self.optimizer.decay_updates and self.optimizer.warmup_updates > num_updates:
            yield (
                f"optimizer.decay_updates = {self.optimizer.decay_updates} are the run's last updates, and "
                f"optimizer.warmup_updates = {self.optimizer.warmup_updates} end after all of them (train.steps x "
                f"updates_per_step = {num_updates}); warm up over fewer, or train longer"
            )
        if self.cluster.device == "cpu":
            yield from self._check_nothing_needs_cuda()
        resume = self.checkpoint.resume
        if resume not in ("auto", "never") and Path(resume).resolve().is_relative_to(self.run_dir.resolve()):
            yield (
                f"checkpoint.resume = {resume!r} is a checkpoint of this run, of which later steps are there, too; "
                "set run.name to a new name to begin from it"
            )
        yield from self._check_placement()
        if self.actor.tp_comm_overlap and self.max_sequence_tokens > self.actor.tokens_per_microbatch:
            yield (
                f"actor.tp_comm_overlap pads every microbatch to tokens_per_microbatch = "
                f"{self.actor.tokens_per_microbatch}, and a sequence may have {self.max_sequence_tokens} tokens; raise "
                "tokens_per_microbatch to that"
            )

    def gap_problems(self, *, is_ahead: bool) -> Iterator[str]:
        """A stop after alarms that never come.

        Args:
            is_ahead: as in `trains_on_older`.
        """
        if not self.observe.gap_stop_after:
            return
        if self.algorithm.old_logprobs == "engine" and self.lora.dropout:
            yield (
                f"observe.gap_stop_after = {self.observe.gap_stop_after} counts alarms, and with "
                f'algorithm.old_logprobs = "engine" and lora.dropout = {self.lora.dropout:g} no pass of the actor has '
                "all inputs: there is no gap to look at; leave gap_stop_after out, or set one of the two otherwise"
            )
        if self.gap_bound(is_ahead=is_ahead):
            return
        rollout, why = self.rollout, "observe.gap_bound = 0 has no alarm"
        if self.observe.gap_bound is None:
            designed = f"sampling ahead (rollout.max_staleness = {rollout.max_staleness})"
            if rollout.top_p < 1:
                designed = f"rollout.top_p = {rollout.top_p:g}"
            elif not is_ahead:
                designed = 'rollout.tail = "keep"'
            why = f"with {designed} there is no alarm by itself"
        yield (
            f"observe.gap_stop_after = {self.observe.gap_stop_after} counts alarms, and {why}; set observe.gap_bound "
            "above 0, or leave gap_stop_after out"
        )

    def _check_lora(self) -> Iterator[str]:
        if not self.lora.rank:
            return
        for setting in ("gradient_accumulation_fusion", "tp_comm_overlap"):
            if getattr(self.actor, setting):
                yield f"actor.{setting} = true is for gradients of whole weights, and lora.rank is set; leave it out"
        if self.lora.sync == "adapter" and self.model.is_megatron:
            yield (
                'lora.sync = "adapter" has engines read the model from model.path, which is a Megatron checkpoint; set '
                'lora.sync = "merged", or model.path to an HF folder (megatron-nft convert megatron-to-hf)'
            )

    def _check_ranks(self) -> Iterator[str]:
        actor, ranks = self.actor, self.cluster.actor_ranks
        if ranks not in (None, actor.world_size):
            replica = actor.world_size // actor.dp
            remedy = f"set actor.dp = {ranks // replica}" if ranks % replica == 0 else "change actor.tp or actor.pp"
            yield (f"{actor.layout} = {actor.world_size} != world size {ranks}; {remedy}")

    def _check_log_probs(self) -> Iterator[str]:
        """An engine that cuts its distribution gives the log-probs of what is left, the actor those of all tokens."""
        algorithm, top_p = self.algorithm, self.rollout.top_p
        reads = [
            f"algorithm.{setting}"
            for setting, is_set in (
                ('old_logprobs = "engine"', algorithm.old_logprobs == "engine"),
                (f"importance_cap = {algorithm.importance_cap:g}", algorithm.importance_cap > 0),
                (f"corrections = {list(algorithm.corrections)}", bool(algorithm.corrections)),
            )
            if is_set
        ]
        if top_p < 1 and reads:
            yield (
                f"rollout.top_p = {top_p:g} makes the engine's log-probs those of a part of the vocabulary, and "
                f"{' and '.join(reads)} compares them with the actor's, which are of all of it; set rollout.top_p = 1, "
                'or algorithm.old_logprobs = "actor" and importance_cap = 0, and no corrections'
            )
        if algorithm.score_centering and not self.rollout.top_logprobs:
            yield (
                "algorithm.score_centering is over the engine's likeliest tokens, and rollout.top_logprobs = 0 has it "
                "say none; set rollout.top_logprobs (128 in the paper)"
            )

    def _check_nothing_needs_cuda(self) -> Iterator[str]:
        precision = self.actor.precision
        if precision.startswith("fp8"):
            yield (
                f'actor.precision = "{precision}" needs a CUDA device, and cluster.device is "cpu"; choose '
                '"fp32" or "bf16"'
            )
        for setting in CUDA_ONLY:
            section, _, key = setting.partition(".")
            if getattr(getattr(self, section), key):
                yield (f'{setting} needs a CUDA device, and cluster.device is "cpu"; leave it out')
        yield from sorted(refused_on_a_cpu(self.rollout.vllm))

    def _what_fits_colocated(self) -> str:
        tp, ranks = self.rollout.tp, self.actor.world_size
        replica = ranks // self.actor.dp
        more = f'actor.dp = {-(-self.rollout.engines * tp // replica)}, or placement = "split"'
        return f"set rollout.engines = {ranks // tp}, or {more}" if ranks >= tp else f"set {more}"

    def _check_placement(self) -> Iterator[str]:
        workers = self.rollout.engines * self.rollout.tp
        if self.is_colocated and workers > self.actor.world_size:
            yield (
                f'cluster.placement = "colocated": rollout.engines x rollout.tp = {workers} workers don\'t fit on the '
                f"actor's {self.actor.world_size} ranks; {self._what_fits_colocated()}"
            )
        if self.carrier == "cuda_ipc" and not (self.is_colocated and self.cluster.device == "cuda"):
            yield (
                f'weights.carrier = "cuda_ipc" needs GPUs that actor and engines share, and cluster.placement is '
                f'"{self.cluster.placement}" on {self.cluster.device}; leave it at "auto"'
            )
        if self.weights.checksums and self.carrier != "shared_memory":
            yield (f'weights.checksums is for the "shared_memory" carrier, not "{self.carrier}"; leave it out')
        if self.carrier == "collective" and self.is_colocated and self.cluster.device == "cuda":
            yield (
                'weights.carrier = "collective" can\'t join two processes of one GPU (NCCL refuses), and '
                'cluster.placement is "colocated"; leave it at "auto"'
            )


CUDA_ONLY = tuple(f"{name}.{key}" for name, field in Config.model_fields.items() for key in field.annotation.cuda_only)
"""Settings that a CPU has no use for."""
