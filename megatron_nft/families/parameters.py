"""A model's parameters as a Megatron checkpoint names and shapes them, beside their HF tensors.

An HFConfig comes in, a list of Parameters in the order of an HF model's files goes out. A checkpoint holds global
tensors: what one rank without tensor parallelism has, with the layers stacked under one key along a first axis of their
own, and the experts of a layer along the next. Where only some layers have experts, each layer has keys of its own. It
uses the names of TransformerEngine's layers; Megatron-Core translates its local layers' to them. Read by
checkpoint_tools and by the engine's side of the weight transfer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from megatron_nft.families.family import HFConfig
from megatron_nft.families.registry import table_of
from megatron_nft.families.rules import LOCAL, ExpertRule, Numbers, Rule

LAYER = "decoder.layers.{layer}."


@dataclass(frozen=True)
class Parameter:
    """One parameter of one layer, of one expert of it, or of none."""

    key: str
    rule: Rule
    numbers: Numbers
    """Of the rule's names."""
    stack: tuple[tuple[int, int], ...]
    """Of each axis that the key's tensor has in front of the parameter's own: index and size."""

    @property
    def layer(self) -> int | None:
        return self.numbers.get("layer")

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Of the key's tensor."""
        return (*(size for _, size in self.stack), *self.shape)

    @property
    def place(self) -> tuple[int, ...]:
        """Where it begins in that."""
        return (*(index for index, _ in self.stack), *[0] * len(self.shape))

    @property
    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """HF name -> shape."""
        return self.rule.hf_shapes(self.numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the axes of the stack; of a vocabulary: with the padding of one rank."""
        return self.rule.layout.shard_shape(())

    @property
    def is_table(self) -> bool:
        """Whether it has the vocabulary's rows, and maybe padding after them."""
        return self.rule.layout.is_vocabulary

    @property
    def is_plain(self) -> bool:
        """Whether its rows are the rows of a single HF tensor."""
        return self.is_table or (self.rule.layout.axis is None and len(self.rule.hf) == 1)

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
        Parameter(embedding.key, embedding, {}, ()),
        *(
            parameter
            for layer in range(hf.num_hidden_layers)
            for rule in rules
            if LAYER in rule.megatron and rule.is_in(layer)
            for parameter in _of_layer(rule, layer, hf)
        ),
        *(Parameter(rule.key, rule, {}, ()) for rule in outside.values()),
    ]


def _of_layer(rule: Rule, layer: int, hf: HFConfig) -> Iterator[Parameter]:
    key, stack = rule.key.replace("{layer}.", ""), ((layer, hf.num_hidden_layers),)
    if hf.mixture is not None and hf.mixture.dense_layers:
        key, stack = rule.key.format(layer=layer), ()
    if not isinstance(rule, ExpertRule):
        yield Parameter(key, rule, {"layer": layer}, stack)
        return
    for expert in range(rule.num_experts):
        yield Parameter(key, rule, {"layer": layer, "slot": expert}, (*stack, (expert, rule.num_experts)))
