"""A model's parameters as a Megatron checkpoint names and shapes them, beside their HF tensors.

An HFConfig comes in, a list of Parameters in the order of an HF model's files goes out. A checkpoint holds global
tensors: what one rank without tensor parallelism has, with the layers stacked under one key along a first axis of their
own. It uses the names of TransformerEngine's layers; Megatron-Core translates its local layers' to them. Read by
checkpoint_tools and by the engine's side of the weight transfer.
"""

from dataclasses import dataclass
from math import prod

from megatron_nft.families.family import HFConfig
from megatron_nft.families.registry import table_of
from megatron_nft.families.rules import LOCAL, Rule

LAYER = "decoder.layers.{layer}."


@dataclass(frozen=True)
class Parameter:
    """One parameter of one layer, or of none."""

    key: str
    layer: int | None
    rule: Rule

    @property
    def numbers(self) -> dict[str, int]:
        """Of the rule's names."""
        return {} if self.layer is None else {"layer": self.layer}

    @property
    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """HF name -> shape."""
        return self.rule.hf_shapes(self.numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Global, less the axis of the layers; of a vocabulary: with the padding of one rank."""
        return self.rule.layout.shard_shape(())

    @property
    def is_table(self) -> bool:
        """Whether it has the vocabulary's rows, and maybe padding after them."""
        return self.rule.layout.is_vocabulary

    @property
    def is_plain(self) -> bool:
        """Whether its rows are the rows of a single HF tensor."""
        return self.is_table or (not self.rule.axes and len(self.rule.hf) == 1)

    @property
    def numel(self) -> int:
        """Numbers in its HF tensors."""
        return sum(prod(shape) for shape in self.hf_shapes.values())


def parameters(hf: HFConfig) -> list[Parameter]:
    """All of a model: the embedding, layer by layer, the last norm, and the output layer unless it is tied."""
    rules = [rule for rule in table_of(hf) if rule.only_in != LOCAL]
    outside = {rule.megatron: rule for rule in rules if LAYER not in rule.megatron}
    embedding = outside.pop("embedding.word_embeddings.weight")
    return [
        Parameter(embedding.megatron, None, embedding),
        *(
            Parameter(rule.megatron.replace("{layer}.", ""), layer, rule)
            for layer in range(hf.num_hidden_layers)
            for rule in rules
            if LAYER in rule.megatron
        ),
        *(Parameter(name, None, rule) for name, rule in outside.items()),
    ]
