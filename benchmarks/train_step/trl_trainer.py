"""TRL's GRPOTrainer on the same sequences: its own training loop, with prepared inputs in place of a generation.

Everything of a step but the generation is TRL's: padded rows, loss, metrics, backward, clipping, AdamW. fp32 and no
gradient checkpointing (its defaults are bf16 and checkpointing), as for the other contestants.
"""

import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.train_step.case import (
    CLIP_HIGH,
    CLIP_LOW,
    GRAD_CLIP,
    GROUP_SIZE,
    LEARNING_RATE,
    WEIGHT_DECAY,
)
from megatron_nft.types import TrainSequence

TOKENIZER = "tests/assets/quickstart/model"
"""Asked for its padding token only."""


def run(
    model_folder: str,
    sequences: Sequence[TrainSequence],
    rows_per_batch: int,
    begin: Callable[[], bool],
    end: Callable[[dict], None],
) -> None:
    """Trains update after update, each between begin() and end(its loss and gradient norm), until begin() is False."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    inputs = padded_inputs(sequences)
    losses: list[Tensor] = []
    norms: list[float] = []

    class Prepared(GRPOTrainer):
        def _generate_and_score_completions(self, inputs_of_prompts: object) -> dict[str, Tensor]:
            return dict(inputs)

        def compute_loss(self, *arguments: object, **keywords: object) -> Tensor:
            loss = super().compute_loss(*arguments, **keywords)
            losses.append(loss.detach())
            return loss

    class Rounds(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            losses.clear()
            if not begin():
                raise StopIteration

        def on_step_end(self, args, state, control, **kwargs):
            end({"loss": float(sum(losses)), "grad_norm": norms[-1]})

    count = len(sequences)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Prepared(
            model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
            reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=scratch,
                per_device_train_batch_size=rows_per_batch,
                gradient_accumulation_steps=count // rows_per_batch,
                num_generations=GROUP_SIZE,
                loss_type="dapo",
                epsilon=CLIP_LOW,
                epsilon_high=CLIP_HIGH,
                beta=0.0,
                temperature=1.0,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                weight_decay=WEIGHT_DECAY,
                max_grad_norm=GRAD_CLIP,
                max_steps=1_000_000,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                report_to=[],
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["1 + 1 ="] * (count // GROUP_SIZE)}),
            processing_class=AutoTokenizer.from_pretrained(TOKENIZER),
            callbacks=[Rounds()],
        )
        clip = trainer.accelerator.clip_grad_norm_

        def kept_norm(*arguments: object, **keywords: object) -> Tensor:
            norm = clip(*arguments, **keywords)
            norms.append(float(norm))
            return norm

        trainer.accelerator.clip_grad_norm_ = kept_norm
        try:
            trainer.train()
        except StopIteration:
            return


def padded_inputs(sequences: Sequence[TrainSequence]) -> dict[str, Tensor]:
    """What GRPOTrainer's generation returns: prompts padded on the left, answers on the right, to the longest."""
    prompts = [s.token_ids_T[: s.num_prompt_tokens] for s in sequences]
    answers = [s.token_ids_T[s.num_prompt_tokens :] for s in sequences]
    longest_prompt, longest_answer = max(map(len, prompts)), max(map(len, answers))

    def left(values: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([np.pad(x, (longest_prompt - len(x), 0)) for x in values]))

    def right(values: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([np.pad(x, (0, longest_answer - len(x))) for x in values]))

    return {
        "prompt_ids": left(prompts).long(),
        "prompt_mask": left([np.ones(len(x), np.int64) for x in prompts]),
        "completion_ids": right(answers).long(),
        "completion_mask": right([np.ones(len(x), np.int64) for x in answers]),
        "advantages": torch.tensor([s.advantage for s in sequences]),
        "num_items_in_batch": torch.tensor(sum(map(len, answers))),
        "old_per_token_logps": right([s.old_logprobs_A for s in sequences]),
    }
