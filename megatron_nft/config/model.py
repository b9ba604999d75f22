"""The model that a run starts from."""

from pathlib import Path

from megatron_nft.config.paths import PathText
from megatron_nft.config.section import Section
from megatron_nft.families.hf_config import hf_side, is_megatron_folder


class ModelConfig(Section):
    """What training starts from, and what it is held to."""

    path: PathText
    """What training starts from: an HF folder (config.json, *.safetensors, tokenizer), or a checkpoint in Megatron's
    format, of a run or made by checkpoint_tools.hf_to_megatron."""
    reference: PathText | None = None
    """HF folder of the frozen model that `algorithm.kl_weight` holds the policy to; usually that of `path`."""

    @property
    def is_megatron(self) -> bool:
        """`path` is a checkpoint in Megatron's format."""
        return is_megatron_folder(self.path)

    @property
    def hf_folder(self) -> Path:
        """Where `path` has its config and tokenizer."""
        return hf_side(self.path)
