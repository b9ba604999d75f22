"""What a model makes of the problems: greedy accuracy, share of mixed groups. Called by make_assets.py."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from problems import Problem
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_ANSWER_TOKENS = 64
GROUP_SIZE = 16


def probe(model_dir: Path, held_out: Sequence[Problem], *, sampled_prompts: int = 64) -> str:
    """A summary in words."""
    greedy = _grade(model_dir, held_out, num_answers=1)
    torch.manual_seed(0)
    sampled = _grade(model_dir, held_out[:sampled_prompts], num_answers=GROUP_SIZE)
    rates = sampled.float().mean(1)
    mixed = ((rates > 0) & (rates < 1)).float().mean()
    by_steps = {
        n: f"{greedy[[len(p.steps) == n for p in held_out]].float().mean():.0%}"
        for n in sorted({len(p.steps) for p in held_out})
    }
    return (
        f"greedy accuracy {greedy.float().mean():.1%} of {len(held_out)} held-out problems (by steps: {by_steps}); "
        f"sampled {rates.mean():.1%}; {mixed:.0%} of {sampled_prompts} prompts mixed at {GROUP_SIZE} answers"
    )


@torch.no_grad()
def _grade(model_dir: Path, asked: Sequence[Problem], *, num_answers: int) -> torch.Tensor:
    """bool [problems, answers]: right, and ended by the end-of-sequence token."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    chats = [[{"role": "user", "content": problem.text}] for problem in asked]
    prompts = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0} if num_answers > 1 else {"do_sample": False}
    tokens = model.generate(**prompts, **sampling, num_return_sequences=num_answers, max_new_tokens=MAX_ANSWER_TOKENS)
    answers = tokens[:, prompts["input_ids"].shape[1] :]
    rights = []
    for i, answer in enumerate(answers):
        boxed = re.findall(r"\\boxed\{(\d+)\}", tokenizer.decode(answer))
        is_right = boxed[-1:] == [str(asked[i // num_answers].answer)]
        rights.append(is_right and tokenizer.eos_token_id in answer)
    return torch.tensor(rights).reshape(len(asked), num_answers)
