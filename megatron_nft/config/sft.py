"""Supervised training on given answers: `megatron_nft.sft`."""

from typing import Literal

from megatron_nft.config.section import Section


class SftConfig(Section):
    """What `megatron_nft.sft` learns of given answers, and in which order. A step has train.groups_per_step of them."""

    learns: Literal["answers", "all"] = "answers"
    """"answers": their tokens, given the prompts; "all": the prompts' tokens, too, as in pretraining."""
    order: Literal["shuffled", "given"] = "shuffled"
    """"shuffled": anew each epoch, by run.seed; "given": as the files have them."""
