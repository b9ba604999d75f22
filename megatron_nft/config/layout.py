"""The parallel layout and the lengths of a recipe, against its model's dimensions."""

from collections.abc import Iterator

from megatron_nft.config.actor import ActorConfig
from megatron_nft.config.errors import RecipeError
from megatron_nft.config.schema import Config
from megatron_nft.families.hf_config import HFConfig


def check_layout(config: Config, hf: HFConfig) -> None:
    """Checks the parallel layout and the lengths against the model's dimensions.

    Raises:
        RecipeError: with the values, the reasons and the values that would do, a line each.
    """
    if found := list(layout_problems(config, hf)):
        raise RecipeError("\n".join(found))


def layout_problems(config: Config, hf: HFConfig) -> Iterator[str]:
    """What of the layout and the lengths doesn't fit the model."""
    for key, tp in (("actor.tp", config.actor.tp), ("rollout.tp", config.rollout.tp)):
        for what, count in (("attention heads", hf.num_attention_heads), ("key/value heads", hf.num_key_value_heads)):
            if count % tp:
                fits = [n for n in range(1, count + 1) if hf.num_attention_heads % n == hf.num_key_value_heads % n == 0]
                yield (f"{key} = {tp} does not divide the model's {count} {what}; choose one of {fits}")
    yield from mixture_problems(config.actor, hf)
    is_all_sparse = hf.mixture is not None and not hf.mixture.dense_layers
    if hf.intermediate_size % config.actor.tp and not is_all_sparse:
        yield (f"actor.tp = {config.actor.tp} does not divide the model's intermediate_size {hf.intermediate_size}")
    yield from _stage_problems(config.actor, hf.num_hidden_layers)
    if config.lora.rank and hf.mixture is not None:
        yield (
            f"lora.rank = {config.lora.rank}: {hf.model_type} has experts, and there are no adapters for models with "
            "experts; leave [lora] out"
        )
    if config.rollout.top_logprobs > hf.vocab_size:
        yield (
            f"rollout.top_logprobs = {config.rollout.top_logprobs} > the model's vocab_size {hf.vocab_size}: there "
            "are no more tokens to say a log-prob of; set that at most (128 in score_centering's paper)"
        )
    if config.max_sequence_tokens > hf.max_position_embeddings:
        yield (
            f"data.max_prompt_tokens {config.data.max_prompt_tokens} + rollout.max_answer_tokens "
            f"{config.rollout.max_answer_tokens} = {config.max_sequence_tokens} > the model's "
            f"max_position_embeddings {hf.max_position_embeddings}; shorten one of them"
        )
    if hf.sliding_window is not None and config.max_sequence_tokens > hf.sliding_window:
        yield (
            f"data.max_prompt_tokens + rollout.max_answer_tokens = {config.max_sequence_tokens} > the model's "
            f"sliding_window {hf.sliding_window}, and the actor attends to whole sequences; shorten one of them"
        )


def mixture_problems(actor: ActorConfig, hf: HFConfig) -> Iterator[str]:
    """What of the layout doesn't fit the model's experts, or a model without any."""
    ep, etp, tp, mixture = actor.ep, actor.expert_tp, actor.tp, hf.mixture
    if mixture is None:
        asked = {"ep": (ep, ep > 1), "etp": (actor.etp, (actor.etp or 1) > 1)}
        asked["routing_replay"] = (f'"{actor.routing_replay}"', actor.routing_replay != "off")
        asked["moe_aux_loss_coeff"] = (actor.moe_aux_loss_coeff, actor.moe_aux_loss_coeff > 0)
        for key, (value, is_on) in asked.items():
            if is_on:
                yield f"actor.{key} = {value} is for mixtures of experts, and this {hf.model_type} model is none"
        return
    ranks = tp * actor.cp * actor.dp
    if mixture.num_experts % ep:
        fits = [n for n in range(1, mixture.num_experts + 1) if mixture.num_experts % n == 0]
        yield f"actor.ep = {ep} does not divide the model's {mixture.num_experts} experts; choose one of {fits}"
    if mixture.intermediate_size % etp:
        yield f"actor.etp = {etp} does not divide the experts' intermediate size {mixture.intermediate_size}"
    if (shared := mixture.shared_intermediate_size) and shared % tp:
        yield f"actor.tp = {tp} does not divide the shared expert's intermediate size {shared}"
    if ep == 1 and etp != tp == 1:
        yield (
            f"actor.etp = {etp} with ep = 1 and tp = 1: without expert parallelism experts are cut as all else is, and "
            f"nothing is; leave etp out, or set actor.tp = {etp} or actor.ep > 1"
        )
    elif ep == 1 and etp != tp:
        yield (
            f"actor.etp = {etp} with ep = 1 and tp = {tp}: Megatron would never sum the experts' gradients over the "
            f"tensor-parallel ranks; leave etp out, or set actor.ep > 1"
        )
    elif ranks % (ep * etp):
        yield (
            f"actor.ep {ep} x etp {etp} = {ep * etp} ranks for the experts do not divide the {ranks} of tp {tp} x cp "
            f"{actor.cp} x dp {actor.dp}; change ep or dp"
        )
    elif max(tp, ep * etp) % min(tp, ep * etp):
        yield (
            f"actor.ep {ep} x etp {etp} = {ep * etp} and actor.tp = {tp}: one must divide the other, so that the same "
            "ranks hold the experts and the rest of a stage"
        )
    if tp > 1 and not actor.sequence_parallel:
        yield (
            f"actor.tp = {tp} with a mixture of experts needs actor.sequence_parallel = true; without it Megatron-Core "
            "trains no experts"
        )
    if actor.precision.startswith("fp8"):
        yield f'actor.precision = "{actor.precision}" is not supported for mixtures of experts; set "bf16"'
    if actor.tp_comm_overlap:
        yield "actor.tp_comm_overlap = true is not supported for mixtures of experts; set it to false"


def _stage_problems(actor: ActorConfig, num_layers: int) -> Iterator[str]:
    """Every rank's layers must be a whole number, and split evenly over its virtual stages."""
    ends = {
        key: getattr(actor, key)
        for key in ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
        if getattr(actor, key) is not None
    }
    for key, layers in ends.items():
        if actor.pp == 1:
            yield (f"actor.{key} = {layers} needs actor.pp > 1; with one stage all layers are in it")
        if layers % actor.vpp:
            yield (f"actor.{key} = {layers} does not split evenly over actor.vpp = {actor.vpp} stages")
    left, stages = num_layers - sum(ends.values()), actor.pp - len(ends)
    if (stages == 0 and left == 0) or (stages and left > 0 and left % (stages * actor.vpp) == 0):
        return
    if ends:
        set_apart = " and ".join(f"{key} = {layers}" for key, layers in ends.items())
        yield (
            f"actor.{set_apart} leave {left} of the model's {num_layers} layers for {stages} other ranks of "
            f"{actor.vpp} stage(s) each; they must split evenly"
        )
    if actor.vpp > 1:
        fits = [n for n in range(1, num_layers + 1) if num_layers % (n * actor.pp) == 0]
        yield (
            f"actor.pp = {actor.pp} x vpp = {actor.vpp} stages do not divide the model's {num_layers} layers; "
            + (f"with this pp choose vpp from {fits}" if fits else "choose a pp that does")
        )
    fits = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
    yield (f"actor.pp = {actor.pp} does not divide the model's {num_layers} layers; choose one of {fits}")
