"""One Megatron rank. Every import of Megatron comes after this."""

from importlib.util import find_spec

if find_spec("transformer_engine") is not None:
    from megatron_nft.actor.cpu import hide_transformer_engine_without_cuda

    hide_transformer_engine_without_cuda()
