"""What vLLM reads otherwise than training does, or can't run: said before an engine starts.

A model's numbers and a run's longest sequence come in, a ModelFolderError goes out. Found by drawing config.json
variants and comparing log-probs (tests/e2e/test_variants.py). Asked by run/parts.py, evaluate, doctor and the engine.
"""

from megatron_nft.families.family import HFConfig, ModelFolderError

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""For which vLLM 0.32's CPU attention has kernels; with others it dies at the first token."""

CPU_EXPERT_MULTIPLE = 32
"""Of the hidden size, that its CPU kernels for experts take."""


def check_served(hf: HFConfig, folder: object, *, max_tokens: int, device: str) -> None:
    """
    Args:
        folder: of the model, for messages.
        max_tokens: of the longest prompt and answer together.
        device: "cpu" or "cuda".

    Raises:
        ModelFolderError: vLLM would run another model, or none.
    """
    derived = hf.hidden_size // hf.num_attention_heads
    if hf.model_type in ("qwen2", "qwen2_moe") and hf.head_dim != derived:
        raise ModelFolderError(
            f"{folder}: head_dim = {hf.head_dim}, but vLLM takes hidden_size / num_attention_heads = {derived} for a "
            f"{hf.model_type} model, whatever config.json says; take a model where they are equal"
        )
    if device == "cpu" and hf.head_dim not in CPU_HEAD_DIMS:
        raise ModelFolderError(
            f"{folder}: vLLM's CPU engine has no kernel for head_dim = {hf.head_dim}; it has them for "
            f"{', '.join(map(str, CPU_HEAD_DIMS))}"
        )
    if device == "cpu" and hf.mixture is not None and hf.hidden_size % CPU_EXPERT_MULTIPLE:
        raise ModelFolderError(
            f"{folder}: vLLM's CPU engine has no kernel for experts of hidden_size = {hf.hidden_size}; it must be a "
            f"multiple of {CPU_EXPERT_MULTIPLE}"
        )
    if hf.yarn is not None and max_tokens > (reach := int(hf.yarn.factor * hf.yarn.original_max_position_embeddings)):
        raise ModelFolderError(
            f"{folder}: yarn's factor {hf.yarn.factor:g} x original_max_position_embeddings "
            f"{hf.yarn.original_max_position_embeddings} = {reach} positions, of which vLLM has no more, and a prompt "
            f"and its answer may have {max_tokens} tokens; shorten data.max_prompt_tokens or rollout.max_answer_tokens"
        )
