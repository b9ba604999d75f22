"""TRL's GRPOTrainer on the same model and prompts, whole: generation, rewards, training. fp32, no checkpointing.

Its fastest generation that runs on a CPU: see the README. What is right is decided in its process.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.step.cases import GRADERS, RECIPE, Case, overrides
from megatron_nft.config import load_config
from megatron_nft.data.prompts import load_prompts, load_tokenizer


def run(
    case: Case, folder: Path, rows: int, begin: Callable[[], None], end: Callable[[dict[str, float]], None]
) -> None:
    """Step after step, each of all its updates between begin() and end(its tokens), until begin() raises."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    config = load_config(RECIPE, overrides(case, folder))
    tokenizer = load_tokenizer(config.model.path)
    prompts = load_prompts(config.data.train, tokenizer, config.data).prompts
    counted: dict[str, float] = {}

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: list) -> list:
        counted["answers"] = len(completions)
        counted["answer tokens"] = sum(map(len, completion_ids))
        counted["prompt tokens"] = sum(columns["num_prompt_tokens"])
        if case.name == "quickstart":
            return graded(completions, columns["ground_truth"])
        ends, is_right = set(model.config.eos_token_id), GRADERS[case.name]
        return [
            float(ids[-1] in ends and is_right(text)) for text, ids in zip(completions, completion_ids, strict=True)
        ]

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step % case.updates == 0:
                begin()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % case.updates == 0:
                end(dict(counted))

    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=case.answers // case.updates // rows,
            generation_batch_size=case.answers,
            num_generations=case.group_size,
            max_completion_length=case.answer_tokens,
            loss_type="dapo",
            epsilon=0.2,
            epsilon_high=0.28,
            beta=0.0,
            temperature=1.0,
            learning_rate=case.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            max_grad_norm=1.0,
            max_steps=1_000_000,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt": p.text, "ground_truth": p.ground_truth, "num_prompt_tokens": len(p.token_ids_P)}
                for p in prompts
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(config.model.path),
        callbacks=[Turns()],
    )
    trainer.train()


def graded(completions: list[str], truths: list[str]) -> list[float]:
    """By math-verify's boxed rule, in this process and without limits: what costs TRL least."""
    from megatron_nft.verdict.boxes import last_boxed

    return [float((last_boxed(text) or "").strip() == truth) for text, truth in zip(completions, truths, strict=True)]
