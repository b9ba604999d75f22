"""Every knob of a run: its default, its meaning and its cross-checks.

A recipe (TOML) and `section.key=value` overrides come in; one read-only `Config` goes out. Defaults stand here, once,
on their field; the recipe overrides them, the command line overrides the recipe. Called by train, evaluate and the
tests. Imports no torch, ray, vllm or megatron, so that a recipe can be checked in milliseconds on any machine.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_nft.families.hf_config import HFConfig, hf_side, is_megatron_folder, read_hf_config

CUDA_ONLY = (
    "actor.gradient_accumulation_fusion",
    "actor.tp_comm_overlap",
    "actor.offload_modules",
    "actor.cpu_offloading_num_layers",
    "optimizer.optimizer_cpu_offload",
)
"""Settings that a CPU has no use for."""


class RecipeError(ValueError):
    """A recipe, an override or a path in it is wrong. The message gives the value, the reason and the remedy."""


class Section(BaseModel):
    """A group of settings: unknown keys fail, values are read-only once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(Section):
    name: str = "nft"
    """Name of the run; its files go to `dir/name`."""
    dir: str = "runs"
    """Folder that holds all runs."""
    seed: int = 1
    """Seeds the prompt order, the sampling of every rollout and Megatron's generators."""
    overwrite: bool = False
    """Replace an earlier run of the same name, its checkpoints too, instead of going on from where it stopped."""


class ModelConfig(Section):
    path: str
    """What training starts from: an HF folder (config.json, *.safetensors, tokenizer), or a checkpoint in Megatron's
    format, of a run or made by checkpoint_tools.hf_to_megatron."""
    reference: str | None = None
    """HF folder of the frozen model that `algorithm.kl_weight` holds the policy to; usually that of `path`."""

    @property
    def is_megatron(self) -> bool:
        """`path` is a checkpoint in Megatron's format."""
        return is_megatron_folder(self.path)

    @property
    def hf_folder(self) -> Path:
        """Where `path` has its config and tokenizer."""
        return hf_side(self.path)


class DataConfig(Section):
    train: list[str] = []
    """Training prompts: parquet or jsonl files, or names on the hub, in the DAPO/verl schema. A run needs some,
    `megatron_nft.evaluate` none."""
    held_out: list[str] = []
    """Held-out prompts for evaluation, same schema. Empty: no evaluation."""
    prompt_format: Literal["chat", "plain"] = "chat"
    """"chat" applies the tokenizer's chat template; "plain" joins the messages' contents as they are."""
    max_prompt_tokens: int = Field(512, ge=1)
    """Longer prompts are dropped and counted."""
    missing_answer: Literal["refuse", "skip"] = "refuse"
    """What to do with a row that has no ground truth: stop with its number, or skip and count it."""


class RolloutConfig(Section):
    engines: int = Field(1, ge=1)
    """Number of vLLM engines."""
    tp: int = Field(1, ge=1)
    """Tensor-parallel size of one engine."""
    group_size: int = Field(16, ge=2)
    """Answers per prompt (K). At least 2: a group of 1 is never mixed, so nothing could be learned from it."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of rollouts; the actor scores at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling. Below 1 the engine's log-probs are of the truncated distribution, and the gap metric shows
    it."""
    max_answer_tokens: int = Field(3584, ge=1)
    """A longer answer is cut, and a cut answer counts as wrong."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the engine's weights."""
    max_sampling_rounds: int = Field(10, ge=1)
    """Rounds of sampling per step before the run stops for want of mixed groups."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache of one engine on a CPU. On a GPU vLLM sizes it from `gpu_memory_fraction`."""
    gpu_memory_fraction: float = Field(0.6, gt=0, lt=1)
    """Share of a GPU's memory that an engine may take."""
    max_concurrent: int = Field(256, ge=1)
    """Answers that one engine works on at the same time (vLLM's max_num_seqs)."""
    timeout_s: float = Field(3600.0, gt=0)
    """Longest wait for the next finished group; then the engines that are late are started again."""
    max_restarts: int = Field(3, ge=0)
    """Engines that may die or hang, and be started again, in a run, before it stops."""
    max_staleness: int = Field(2, ge=0)
    """`megatron_nft.train_async`: most weight syncs between the policy that sampled a token and the one that trains on
    it. 1: engines and trainer, as fast as each other, wait for each other a fifth of their time (benchmarks/async).
    0: they take turns, as in `megatron_nft.train`."""
    on_sync: Literal["keep", "recompute", "restart"] = "keep"
    """`megatron_nft.train_async`: what a weight sync means for answers under way. "keep": they go on with the new
    weights and the old KV cache; "recompute": and with a new one; "restart": they begin again from their prompt."""


VerdictMode = Literal["boxed", "strict_boxed", "answer_line", "last_number", "dapo_line", "whole_text"]
"""How an answer is found in a text, and compared: verdict/graders.py."""

OWN_GRADER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""A grader of one's own, "package.module:function": verdict/own_grader.py."""


def _known_mode(mode: str) -> str:
    if mode not in get_args(VerdictMode) and not OWN_GRADER.fullmatch(mode):
        known = ", ".join(get_args(VerdictMode))
        raise ValueError(f'choose one of {known}, or a function of your own as "package.module:function"')
    return mode


class VerdictConfig(Section):
    workers: int = Field(2, ge=1)
    """Grading processes; each can be killed without harm to the others. More than the driver's node has cores are
    shared out over all nodes."""
    deadline_s: float = Field(5.0, gt=0)
    """An answer whose grading takes longer, twice, leaves its group, under the kind "timeout"."""
    memory_gib: float = Field(2.0, gt=0)
    """Memory that grading an answer may take; one that takes more leaves its group, under the kind "error"."""
    batches: dict[str, Annotated[int, Field(ge=1)]] = {}
    """A grader of one's own -> how many answers it is called with at once: it takes lists, and returns one."""
    loose_rewards: list[str] = []
    """Data sources whose answers may earn rewards by the mode "whole_text", which is unfit for that."""
    thoughts: bool = True
    """The answer stands behind the last </think>, where there is one; a thought that is not finished has none."""
    modes: dict[str, Annotated[str, AfterValidator(_known_mode)]] = {}
    """data_source -> how its answers are graded, where verdict/graders.py's table is not to hold: a mode or
    a function of one's own (verdict/README.md), {"gsm8k" = "last_number", "my/source" = "package.module:function"}."""


PRESETS: dict[str, dict[str, Any]] = {
    "nft": {},
    "rft": {"neg_weight": 0.0},
    "grpo": {"neg_weight": -1.0, "normalize": 2, "reduction": "sequences"},
    "dr_grpo": {"neg_weight": -1.0, "normalize": 1, "reduction": "constant"},
    "dapo": {"neg_weight": -1.0, "normalize": 2, "clip_high": 0.28, "overlong_penalty": 1.0},
}
"""algorithm.name -> what it sets otherwise than NFT, whose settings are the fields' defaults. A recipe may override."""

CLIPPED = tuple(name for name, preset in PRESETS.items() if preset.get("neg_weight") == -1)
"""The methods with the clipped policy-gradient objective."""


class AlgorithmConfig(Section):
    name: Literal["nft", "rft", "grpo", "dr_grpo", "dapo"] = "nft"
    """The method; sets the defaults of the settings below (PRESETS). `neg_weight = -1` alone means "dapo"."""
    neg_weight: float = 1.0
    """Weight of wrong answers in NFT's loss: 1 is NFT, 0 is rejection fine-tuning (RFT). -1: the clipped
    policy-gradient objective of GRPO, Dr. GRPO and DAPO instead."""
    normalize: Literal[0, 1, 2] = 1
    """NFT, RFT: prompt weight w(q): 0: 1; 1: 1 - p (on-policy: Dr. GRPO); 2: sqrt((1 - p) / p) (on-policy: GRPO).
    GRPO and its kin: 1: advantage = reward - mean of the group; 2: that over the group's standard deviation."""
    clamp_negative: float = Field(1.0, gt=0, le=1)
    """NFT: lower clamp of a wrong answer's implicit likelihood ratio (the paper's epsilon); the gradient passes
    straight through."""
    ratio_type: Literal["token", "sequence"] = "token"
    """NFT, RFT: likelihood ratio per token, or one per answer (the product of its tokens' ratios)."""
    clip_low: float = Field(0.2, gt=0, le=1)
    """GRPO and its kin: a likelihood ratio below 1 - clip_low earns nothing more."""
    clip_high: float = Field(0.2, gt=0)
    """GRPO and its kin: a likelihood ratio above 1 + clip_high earns nothing more (DAPO: 0.28)."""
    overlong_penalty: float = Field(0.0, ge=0)
    """GRPO and its kin: DAPO's soft overlong punishment of long answers. At 1 (the paper's) an answer of full length
    loses half of what separates a right one from a wrong one. 0: off."""
    overlong_share: float = Field(0.2, gt=0, le=1)
    """The last part of rollout.max_answer_tokens, in which the punishment grows from nothing to full."""
    reduction: Literal["tokens", "sequences", "constant", "published"] = "tokens"
    """"tokens": mean over all answer tokens of the optimizer mini-batch (DAPO); "sequences": mean over answers of
    their tokens' mean (GRPO); "constant": sum / `reduction_constant` / answers (Dr. GRPO); "published": the scale of
    the NFT authors' code, sum / 1000 averaged over data-parallel ranks, for comparison with it only."""
    reduction_constant: float | None = Field(None, gt=0)
    """Divisor of the "constant" reduction, in tokens per answer. Unset: rollout.max_answer_tokens."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the frozen `model.reference`. 0: off, and no reference model is loaded."""
    old_logprobs: Literal["actor", "engine"] = "actor"
    """What the likelihood ratio is against. "actor": the actor's own log-probs before the step's first update;
    "engine": those of the policy that sampled each token, as the engine says: a forward pass less, its rounding in."""
    importance_cap: float = Field(0.0, ge=0)
    """Truncated importance correction of the gap between engine and actor: each token's loss is multiplied by
    min(actor's / engine's probability before the update, importance_cap). Usual: 2. 0: off."""

    @property
    def is_clipped(self) -> bool:
        """The clipped policy-gradient objective, in place of NFT's."""
        return self.neg_weight == -1

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("name", "dapo" if given.get("neg_weight") == -1 else "nft")
        return {"name": name, **PRESETS.get(name, {}), **given}

    @model_validator(mode="after")
    def _check(self) -> "AlgorithmConfig":
        name, neg_weight = self.name, self.neg_weight
        if neg_weight < 0 and neg_weight != -1:
            raise ValueError(
                f"algorithm.neg_weight = {neg_weight:g}: choose 0 (RFT) or more (1: NFT), or exactly -1 (DAPO)"
            )
        if self.is_clipped and name not in CLIPPED:
            raise ValueError(
                f'algorithm.neg_weight = -1 is the clipped objective, not "{name}"; '
                f"leave algorithm.name out (DAPO), or choose one of {', '.join(CLIPPED)}"
            )
        if not self.is_clipped and name in CLIPPED:
            raise ValueError(
                f'algorithm.neg_weight = {neg_weight:g} is a weight in NFT\'s loss, which "{name}" has not; '
                'leave neg_weight out, or set algorithm.name = "nft"'
            )
        if name == "rft" and neg_weight != 0:
            raise ValueError(
                f'algorithm.name = "rft" learns from right answers only, neg_weight = {neg_weight:g} weighs wrong '
                'ones; set algorithm.name = "nft"'
            )
        if self.is_clipped and self.normalize == 0:
            raise ValueError(
                f'algorithm.normalize = 0 is not defined for "{name}"; choose 1 (Dr. GRPO) or 2 (GRPO, DAPO)'
            )
        if self.is_clipped and self.ratio_type == "sequence":
            raise ValueError(f'algorithm.ratio_type = "sequence" is not defined for "{name}"; leave it at "token"')
        if self.old_logprobs == "engine" and self.importance_cap:
            raise ValueError(
                f"algorithm.importance_cap = {self.importance_cap:g} corrects for the gap from engine to actor, and "
                'algorithm.old_logprobs = "engine" knows the engine only; set importance_cap = 0, or "actor"'
            )
        if not self.is_clipped and self.overlong_penalty:
            raise ValueError(
                f"algorithm.overlong_penalty = {self.overlong_penalty:g} shapes a reward, and "
                f'"{name}" has verdicts only (a truncated answer is wrong); set it to 0, or algorithm.name = "dapo"'
            )
        return self


class ActorConfig(Section):
    tp: int = Field(1, ge=1)
    """Tensor-parallel size."""
    pp: int = Field(1, ge=1)
    """Pipeline-parallel size."""
    dp: int = Field(1, ge=1)
    """Data-parallel size; the optimizer state is sharded over it."""
    cp: int = Field(1, ge=1)
    """Context-parallel size: every sequence's tokens are spread over so many ranks, for long answers."""
    vpp: int = Field(1, ge=1)
    """Virtual pipeline stages per rank (Megatron's interleaved schedule): smaller bubbles for more messages."""
    num_layers_in_first_pipeline_stage: int | None = Field(None, ge=1)
    """Layers of the first rank's stages together. Unset: as many as the others have."""
    num_layers_in_last_pipeline_stage: int | None = Field(None, ge=1)
    """Layers of the last rank's stages together; fewer make up for the vocabulary's logits."""
    sequence_parallel: bool = False
    """Shard norms and residuals over the tensor-parallel ranks along the tokens."""
    precision: Literal["fp32", "bf16", "fp8-delayed", "fp8-tensorwise", "fp8-blockwise", "fp8-mxfp8"] = "bf16"
    """Number format of forward and backward; master weights and the optimizer stay fp32. FP8 by TransformerEngine's
    recipe of that name: delayed and tensorwise from Ada and Hopper on, blockwise on Hopper, mxfp8 on Blackwell."""
    num_layers_at_start_in_bf16: int = Field(0, ge=0)
    """FP8: the first so many layers stay in bf16."""
    num_layers_at_end_in_bf16: int = Field(0, ge=0)
    """FP8: the last so many layers stay in bf16."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Token budget of a packed microbatch. A single longer sequence still gets a microbatch of its own."""
    logits_mib: int = Field(128, ge=1)
    """fp32 logits that a rank holds at a time: log-probs go through the vocabulary in blocks of this size, and the
    backward pass computes their logits again."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation: trade time for memory."""
    overlap_grad_reduce: bool = False
    """Reduce gradients over the data-parallel ranks while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward pass goes on. Needs overlap_grad_reduce."""
    ddp_bucket_size: int | None = Field(None, ge=1)
    """Parameters per message of the two overlaps. Unset: 40 million, or 1 million x dp if that is more."""
    gradient_accumulation_fusion: bool = False
    """CUDA: add weight gradients to their fp32 buffers inside the matrix product."""
    tp_comm_overlap: bool = False
    """CUDA: overlap tensor-parallel messages with the products beside them. Needs sequence_parallel, and pads every
    microbatch to tokens_per_microbatch."""
    offload_modules: list[Literal["attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm"]] = []
    """CUDA: keep these modules' inputs in host memory until the backward pass
    (Megatron's fine_grained_activation_offloading)."""
    cpu_offloading_num_layers: int = Field(0, ge=0)
    """CUDA: keep all activations of so many layers in host memory until the backward pass. Needs pp = 1 and recompute =
    "none"."""
    fp8_param: bool = False
    """FP8: hold the parameters of FP8 layers in FP8 as well, and gather them so. Not for fp8-mxfp8."""
    timeout_s: float = Field(1800.0, gt=0)
    """Longest wait for a collective or for one verb (score, train_step) before the run stops with an error."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    @property
    def layout(self) -> str:
        """In words: the axes that every run has, and those that are in use."""
        virtual = f" x {self.vpp} virtual stages" if self.vpp > 1 else ""
        context = f" x cp {self.cp}" if self.cp > 1 else ""
        return f"tp {self.tp} x pp {self.pp}{virtual}{context} x dp {self.dp}"


class OptimizerConfig(Section):
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW, held constant after the warm-up."""
    warmup_updates: int = Field(10, ge=0)
    """Optimizer updates of linear warm-up."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW weight decay (not on norms and biases)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW first-moment decay."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW second-moment decay."""
    eps: float = Field(1e-8, gt=0)
    """AdamW denominator guard."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest global gradient norm; a longer gradient is scaled down to it."""
    optimizer_cpu_offload: bool = False
    """CUDA: hold master weights and moments in host memory, and update them there."""
    optimizer_offload_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the parameters that optimizer_cpu_offload is for."""
    overlap_cpu_optimizer_d2h_h2d: bool = True
    """Overlap the offloaded update with its transfers."""
    skip_nonfinite: bool = False
    """What to do with an update whose gradient is not finite. false: stop before it, with the batch and the weights
    kept for `python -m megatron_nft.replay`; true: leave it out, keep the batch, count it and go on."""


class WeightsConfig(Section):
    carrier: Literal["auto", "shared_memory", "collective", "cuda_ipc"] = "auto"
    """How buckets travel: "shared_memory" on one machine; "collective", a broadcast by NCCL (gloo on CPUs), between
    machines or GPUs; "cuda_ipc" where actor and engines share GPUs. "auto": shared_memory on CPUs, cuda_ipc if
    colocated, else collective."""
    bucket_mib: int | None = Field(None, ge=1)
    """Size of a weight-sync bucket, over all pipeline stages. Two are in use at a time. Unset: a 16th of each stage's
    weights, but 16 to 512 MiB."""
    checksums: bool = False
    """Send every bucket with a checksum that its readers compare, for a machine whose memory is in doubt."""
    timeout_s: float = Field(300.0, gt=0)
    """Longest wait for one phase of a weight sync before the run stops with the phase's name."""
    canary: bool = False
    """After every sync each engine answers one prompt, and the actor scores the answer: engines that disagree, or whose
    log-probs are further than canary_gap from the actor's, end the run."""
    canary_gap: float = Field(0.1, gt=0)
    """Largest mean distance of engine and actor log-probs in the canary's answer, in nats per token."""


class CheckpointConfig(Section):
    every: int = Field(10, ge=0)
    """Save everything that a run needs to go on, every so many steps and after the last. 0: never."""
    keep_last: int = Field(2, ge=1)
    """Checkpoints that stay; older ones are deleted once a new one is whole."""
    keep_every: int = Field(0, ge=0)
    """Those of every so many steps stay, too. 0: none."""
    resume: str = "auto"
    """"auto": go on from the newest whole checkpoint of this run's folder, if there is one; "never"; or the folder of
    another run's checkpoint to begin from, until this run has its own."""
    in_background: bool = True
    """Write while training goes on, which waits for a copy in host memory only. false: wait for the disk."""


class TrainConfig(Section):
    steps: int = Field(100, ge=1)
    """Rollout steps. Each samples, grades, trains and syncs the weights once."""
    groups_per_step: int = Field(512, ge=1)
    """Mixed groups (prompts with right and wrong answers) that a step trains on."""
    updates_per_step: int = Field(16, ge=1)
    """Optimizer updates per step; must divide groups_per_step."""
    evaluate_every: int = Field(5, ge=0)
    """Evaluate on the held-out prompts every so many steps, besides before the first and after the last. 0: only
    those."""
    export_every: int = Field(0, ge=0)
    """Write the model as an HF folder every so many steps, besides after the last. 0: only after the last."""


class EvaluateConfig(Section):
    max_prompts: int = Field(0, ge=0)
    """Evaluate on the first so many held-out prompts. 0: all."""
    samples: int = Field(0, ge=0)
    """Sampled answers per prompt for avg@k. 0: greedy only, in a run."""
    samples_of: dict[str, Annotated[int, Field(ge=1)]] = {}
    """`megatron_nft.evaluate`: benchmark (its file's name without the ending) -> sampled answers per prompt, where it
    isn't `samples`: {math500 = 1}."""
    temperature: float = Field(0.6, ge=0)
    """Temperature of the sampled answers. 0, greedy, goes with one sample only."""
    top_p: float = Field(0.7, gt=0, le=1)
    """Nucleus of the sampled answers."""
    in_background: bool = True
    """In a run with cluster.placement = "split": evaluate a step's weights while the actor trains the next step, on the
    engines that would idle; the sync waits for it. false, and `megatron_nft.train_async`: between the steps. The
    answers are the same."""


class ClusterConfig(Section):
    device: Literal["cpu", "cuda"] = "cuda"
    """Where actors and engines run. The rest of the program is the same."""
    placement: Literal["split", "colocated"] = "split"
    """"split": actors and engines have GPUs (or cores) of their own. "colocated": engine i takes turns with the actor
    ranks from rollout.tp x i on, on the same GPUs; the one that waits gives its memory back."""
    actor_ranks: int | None = Field(None, ge=1)
    """Ranks that this job has for the actor, checked against tp x pp x dp. Unset: as many as the layout needs."""
    threads_per_process: int = Field(1, ge=1)
    """CPU threads of each actor rank and engine (OMP_NUM_THREADS)."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Longest wait for actors and engines to come up."""
    max_restarts: int = Field(3, ge=0)
    """Times in a row that lost actor ranks are started again in this job, from the last checkpoint, before the run
    stops. A step further than ever before ends the row."""


class ObserveConfig(Section):
    rollouts_per_step: int = Field(16, ge=0)
    """Answers written to rollouts.jsonl each step."""
    save_batches: bool = False
    """Keep every step's training batch as batches/step_N.npz, for `python -m megatron_nft.replay`."""
    entropy: bool = False
    """Measure the policy's entropy at every answer token of the update; costs some time."""
    trackers: list[Literal["tensorboard", "wandb"]] = []
    """Where metrics go besides metrics.jsonl: run folder/tensorboard, Weights & Biases. Their packages are in
    requirements-trackers.txt."""
    wandb_mode: Literal["online", "offline"] = "online"
    """"offline" needs no network and no account, and writes what `wandb sync` uploads later."""
    wandb_project: str = "megatron_nft"
    """Project of the Weights & Biases run."""
    wandb_entity: str | None = None
    """Team or user of the Weights & Biases run. Unset: the account's own."""


class Config(Section):
    """The whole recipe. Sections are handed to the functions that use them."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    verdict: VerdictConfig = VerdictConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    actor: ActorConfig = ActorConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    weights: WeightsConfig = WeightsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    train: TrainConfig = TrainConfig()
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
        """Engines and actor don't wait for each other's memory, so that engines may work while the actor trains."""
        return self.evaluate.in_background and not self.is_colocated

    @property
    def carrier(self) -> str:
        """weights.carrier, with "auto" resolved."""
        if self.weights.carrier != "auto":
            return self.weights.carrier
        if self.cluster.device == "cpu":
            return "shared_memory"
        return "cuda_ipc" if self.is_colocated else "collective"

    @model_validator(mode="after")
    def _check_sections_agree(self) -> "Config":
        actor, train = self.actor, self.train
        most_samples = max([self.evaluate.samples, *self.evaluate.samples_of.values()])
        if self.evaluate.temperature == 0 and most_samples > 1:
            raise ValueError(
                f"evaluate.temperature = 0 gives {most_samples} equal answers; set evaluate.samples = 1, or a "
                "temperature above 0"
            )
        if self.cluster.actor_ranks not in (None, actor.world_size):
            ranks = self.cluster.actor_ranks
            replica = actor.world_size // actor.dp
            remedy = f"set actor.dp = {ranks // replica}" if ranks % replica == 0 else "change actor.tp or actor.pp"
            raise ValueError(f"{actor.layout} = {actor.world_size} != world size {ranks}; {remedy}")
        if train.groups_per_step % train.updates_per_step:
            raise ValueError(
                f"train.groups_per_step = {train.groups_per_step} is not a multiple of "
                f"train.updates_per_step = {train.updates_per_step}; every update takes the same number of groups"
            )
        if self.algorithm.kl_weight and self.model.reference is None:
            raise ValueError(
                f"algorithm.kl_weight = {self.algorithm.kl_weight:g} needs a reference model; set model.reference to "
                f"an HF folder (usually model.path, {self.model.path!r}), or kl_weight = 0"
            )
        if actor.pp == 1 and actor.vpp > 1:
            raise ValueError(f"actor.vpp = {actor.vpp} needs actor.pp > 1; one stage cannot be interleaved with others")
        if actor.precision.startswith("fp8") and self.cluster.device == "cpu":
            raise ValueError(
                f'actor.precision = "{actor.precision}" needs a CUDA device, and cluster.device is "cpu"; choose '
                '"fp32" or "bf16"'
            )
        if self.cluster.device == "cpu":
            for setting in CUDA_ONLY:
                section, _, key = setting.partition(".")
                if getattr(getattr(self, section), key):
                    raise ValueError(f'{setting} needs a CUDA device, and cluster.device is "cpu"; leave it out')
        if actor.num_layers_at_start_in_bf16 or actor.num_layers_at_end_in_bf16:
            if not actor.precision.startswith("fp8"):
                raise ValueError(
                    f'actor.num_layers_at_start_in_bf16 and _at_end_in_bf16 are for FP8; with "{actor.precision}" '
                    "leave them at 0"
                )
            if actor.precision == "fp8-delayed":
                raise ValueError(
                    "fp8-delayed keeps no layers in bf16 (Megatron-Core refuses it); set "
                    'actor.num_layers_at_start_in_bf16 = actor.num_layers_at_end_in_bf16 = 0, or "fp8-tensorwise"'
                )
        if actor.sequence_parallel and actor.tp == 1:
            raise ValueError("actor.sequence_parallel = true needs actor.tp > 1; there is nothing to shard over")
        resume = self.checkpoint.resume
        if resume not in ("auto", "never") and Path(resume).resolve().is_relative_to(self.run_dir.resolve()):
            raise ValueError(
                f"checkpoint.resume = {resume!r} is a checkpoint of this run, of which later steps are there, too; "
                "set run.name to a new name to begin from it"
            )
        self._check_placement()
        self._check_performance()
        return self

    def _check_placement(self) -> None:
        workers = self.rollout.engines * self.rollout.tp
        if self.is_colocated and workers > self.actor.world_size:
            raise ValueError(
                f'cluster.placement = "colocated": rollout.engines x rollout.tp = {workers} workers don\'t fit on the '
                f'actor\'s {self.actor.world_size} ranks; use fewer engines, or "split"'
            )
        if self.carrier == "cuda_ipc" and not (self.is_colocated and self.cluster.device == "cuda"):
            raise ValueError(
                f'weights.carrier = "cuda_ipc" needs GPUs that actor and engines share, and cluster.placement is '
                f'"{self.cluster.placement}" on {self.cluster.device}; leave it at "auto"'
            )
        if self.weights.checksums and self.carrier != "shared_memory":
            raise ValueError(
                f'weights.checksums is for the "shared_memory" carrier, not "{self.carrier}"; leave it out'
            )
        if self.carrier == "collective" and self.is_colocated and self.cluster.device == "cuda":
            raise ValueError(
                'weights.carrier = "collective" can\'t join two processes of one GPU (NCCL refuses), and '
                'cluster.placement is "colocated"; leave it at "auto"'
            )

    def _check_performance(self) -> None:
        actor = self.actor
        if actor.overlap_param_gather and not actor.overlap_grad_reduce:
            raise ValueError("actor.overlap_param_gather = true needs actor.overlap_grad_reduce = true; set both")
        if actor.tp_comm_overlap and (not actor.sequence_parallel or actor.cp > 1):
            raise ValueError(
                f"actor.tp_comm_overlap = true needs actor.sequence_parallel = true and actor.cp = 1, not "
                f"sequence_parallel = {str(actor.sequence_parallel).lower()} and cp = {actor.cp}"
            )
        if actor.tp_comm_overlap and self.max_sequence_tokens > actor.tokens_per_microbatch:
            raise ValueError(
                f"actor.tp_comm_overlap pads every microbatch to tokens_per_microbatch = "
                f"{actor.tokens_per_microbatch}, and a sequence may have {self.max_sequence_tokens} tokens; raise "
                "tokens_per_microbatch to that"
            )
        if actor.cpu_offloading_num_layers and (actor.pp > 1 or actor.recompute != "none" or actor.offload_modules):
            raise ValueError(
                f"actor.cpu_offloading_num_layers = {actor.cpu_offloading_num_layers} needs actor.pp = 1, "
                'actor.recompute = "none" and no offload_modules (Megatron-Core refuses them together); with pp > 1 '
                "use offload_modules"
            )
        if "attn_proj" in actor.offload_modules and "core_attn" not in actor.offload_modules:
            raise ValueError(
                'actor.offload_modules: "attn_proj" goes with "core_attn" only, whose backward pass needs that tensor'
            )
        if actor.fp8_param and (not actor.precision.startswith("fp8") or actor.precision == "fp8-mxfp8"):
            raise ValueError(
                f'actor.fp8_param = true needs fp8-delayed, fp8-tensorwise or fp8-blockwise, not "{actor.precision}"'
            )


def load_config(recipe: str | Path | None, overrides: Sequence[str] = (), *, trains: bool = True) -> Config:
    """Reads a recipe, applies `section.key=value` overrides, checks it against the model's own config.json.

    Args:
        recipe: TOML file; None: the overrides and the defaults are all.
        trains: whether it is a training run's, which needs training data.

    Raises:
        RecipeError: the file, a key, a value, or the model folder is wrong; every problem found is listed.
    """
    try:
        tree = tomllib.loads(Path(recipe).read_text()) if recipe is not None else {}
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {recipe}; the shipped ones are in launch/recipes") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{recipe} is not valid TOML: {error}") from None
    for override in overrides:
        _apply_override(tree, override)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(_explain(problem) for problem in error.errors())
        raise RecipeError(f"{recipe or 'the settings'}:\n{problems}") from None
    if trains and not config.data.train:
        raise RecipeError(f"{recipe}: data.train is missing or empty; the recipe must name the training prompts' files")
    hf = read_hf_config(config.model.path)
    check_layout(config, hf)
    if config.algorithm.kl_weight and read_hf_config(config.model.reference) != hf:
        raise RecipeError(
            f"model.reference = {config.model.reference!r} is not of the same architecture as model.path = "
            f"{config.model.path!r}; give the folder of an earlier state of the same model"
        )
    return config


def check_layout(config: Config, hf: HFConfig) -> None:
    """Checks the parallel layout and the lengths against the model's dimensions.

    Raises:
        RecipeError: with the value, the reason and the values that would do.
    """
    for key, tp in (("actor.tp", config.actor.tp), ("rollout.tp", config.rollout.tp)):
        for what, count in (("attention heads", hf.num_attention_heads), ("key/value heads", hf.num_key_value_heads)):
            if count % tp:
                fits = [n for n in range(1, count + 1) if hf.num_attention_heads % n == hf.num_key_value_heads % n == 0]
                raise RecipeError(f"{key} = {tp} does not divide the model's {count} {what}; choose one of {fits}")
    if hf.intermediate_size % config.actor.tp:
        raise RecipeError(
            f"actor.tp = {config.actor.tp} does not divide the model's intermediate_size {hf.intermediate_size}"
        )
    _check_stages(config.actor, hf.num_hidden_layers)
    if config.max_sequence_tokens > hf.max_position_embeddings:
        raise RecipeError(
            f"data.max_prompt_tokens {config.data.max_prompt_tokens} + rollout.max_answer_tokens "
            f"{config.rollout.max_answer_tokens} = {config.max_sequence_tokens} > the model's "
            f"max_position_embeddings {hf.max_position_embeddings}; shorten one of them"
        )
    if hf.sliding_window is not None and config.max_sequence_tokens > hf.sliding_window:
        raise RecipeError(
            f"data.max_prompt_tokens + rollout.max_answer_tokens = {config.max_sequence_tokens} > the model's "
            f"sliding_window {hf.sliding_window}, and the actor attends to whole sequences; shorten one of them"
        )


def _check_stages(actor: ActorConfig, num_layers: int) -> None:
    """Every rank's layers must be a whole number, and split evenly over its virtual stages."""
    ends = {
        key: getattr(actor, key)
        for key in ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
        if getattr(actor, key) is not None
    }
    for key, layers in ends.items():
        if actor.pp == 1:
            raise RecipeError(f"actor.{key} = {layers} needs actor.pp > 1; with one stage all layers are in it")
        if layers % actor.vpp:
            raise RecipeError(f"actor.{key} = {layers} does not split evenly over actor.vpp = {actor.vpp} stages")
    left, stages = num_layers - sum(ends.values()), actor.pp - len(ends)
    if (stages == 0 and left == 0) or (stages and left > 0 and left % (stages * actor.vpp) == 0):
        return
    if ends:
        set_apart = " and ".join(f"{key} = {layers}" for key, layers in ends.items())
        raise RecipeError(
            f"actor.{set_apart} leave {left} of the model's {num_layers} layers for {stages} other ranks of "
            f"{actor.vpp} stage(s) each; they must split evenly"
        )
    if actor.vpp > 1:
        fits = [n for n in range(1, num_layers + 1) if num_layers % (n * actor.pp) == 0]
        raise RecipeError(
            f"actor.pp = {actor.pp} x vpp = {actor.vpp} stages do not divide the model's {num_layers} layers; "
            + (f"with this pp choose vpp from {fits}" if fits else "choose a pp that does")
        )
    fits = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
    raise RecipeError(f"actor.pp = {actor.pp} does not divide the model's {num_layers} layers; choose one of {fits}")


def to_toml(config: Config) -> str:
    """The resolved recipe as TOML: what `load_config` reads back to an equal `Config`."""
    lines = []
    for section, values in config.model_dump(exclude_none=True).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    """JSON is TOML, but for tables."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {_toml_value(v)}" for k, v in value.items()) + "}"


def flat_settings(recipe: str) -> dict[str, Any]:
    """What a recipe's text sets, as "section.key" -> value, without any check."""
    return {f"{s}.{key}": value for s, keys in tomllib.loads(recipe).items() for key, value in keys.items()}


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not (equals and dot and section and key):
        raise RecipeError(f"override {override!r} is not of the form section.key=value, e.g. actor.tp=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word: run.name=test
    tree.setdefault(section, {})[key] = value


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section = Config.model_fields.get(str(problem["loc"][0])) if len(problem["loc"]) > 1 else None
        known = section.annotation.model_fields if section else Config.model_fields
        return f"  {where}: unknown key; known here: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"  {where}: missing; the recipe must set it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"  {where} = {problem['input']!r}: {message}" if where else f"  {message}"
