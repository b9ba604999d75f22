"""The logits of one sequence, by transformers and by the actor's model from a Megatron checkpoint, in fp32 on a CPU.

Called by checkpoint_tools/verify.py. One process, and a process group of itself alone.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from megatron_nft.families.hf_config import read_hf_config


@torch.no_grad()
def transformers_logits(folder: Path, token_ids_T: Tensor) -> Tensor:
    """float32 [T, vocabulary]."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    return model(token_ids_T[None]).logits[0]


@torch.no_grad()
def megatron_logits(checkpoint: Path, config: Path, token_ids_T: Tensor) -> Tensor:
    """float32 [T, vocabulary].

    Args:
        config: folder with the model's config.json.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    warnings.filterwarnings("ignore")  # Megatron says what isn't installed, none of which this needs
    from megatron_nft.actor.topology import destroy_topology, free_address, init_topology
    from megatron_nft.config import ActorConfig

    hf, actor = read_hf_config(config), ActorConfig(precision="fp32")
    topology = init_topology(actor, rank=0, master=free_address(), device="cpu", seed=0)
    try:
        # These need the CPU's stand-ins for CUDA, which the line above has put in place.
        from megatron_nft.actor.attention import pack_bounds
        from megatron_nft.actor.checkpoint import load_weights
        from megatron_nft.actor.model import build_chunks, output_weight

        (chunk,) = build_chunks(hf, actor, topology)
        load_weights(checkpoint, [chunk.eval()])
        hidden = chunk(
            input_ids=token_ids_T[None],
            position_ids=torch.arange(len(token_ids_T))[None],
            attention_mask=None,
            packed_seq_params=pack_bounds([len(token_ids_T)], topology.device),
        )
        return (hidden[0] @ output_weight(chunk).T)[:, : hf.vocab_size]
    finally:
        destroy_topology()
