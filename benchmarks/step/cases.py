"""What both contestants do in a step: a model, prompts, what is right, and how much of it.

quickstart  the shipped recipe's model, problems and sizes: 32 groups of 16, two updates, answers of up to 64 tokens
equal       a random model of 4.36 M parameters, prompts of 32 tokens, answers of up to 32, 16 groups of 16, one update;
            a token in 200 is a last one: 85 of 100 answers are cut at 32, and what ends by itself is right
spread      the same, prompts of 8, answers of up to 128 tokens of which one in 30 is a last one; what ends by itself
            is right or wrong by its characters

So nearly every group has both. (An answer that is cut off is wrong here; megatron_nft counts it so, too.)
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.train_step.case import MODEL, VOCABULARY

RECIPE = "launch/recipes/quickstart.toml"
QUICKSTART = "tests/assets/quickstart"
TEXT_TOKENS = 600
"""Of the random model's vocabulary, those whose tokens have a text, and no meaning besides."""
LAST = {"equal": 200, "spread": 30}
"""A token in so many ends an answer."""


@dataclass(frozen=True)
class Case:
    """Sizes of a step."""

    name: str
    groups: int
    updates: int
    prompt_tokens: int  # at most
    answer_tokens: int  # at most
    learning_rate: float
    trl_rows: int  # of TRL's forward pass: its fastest of those tried, 16 to 256
    group_size: int = 16

    @property
    def answers(self) -> int:
        return self.groups * self.group_size


CASES = {
    "quickstart": Case("quickstart", 32, 2, 128, 64, 5e-5, 256),
    "equal": Case("equal", 16, 1, 32, 32, 1e-6, 32),
    "spread": Case("spread", 16, 1, 8, 128, 1e-6, 32),
}


def right_by_characters(answer: str, **_: object) -> bool:
    """What counts as right in "spread", as verdict.modes takes it."""
    return sum(map(ord, answer)) % 2 == 1


def right(answer: str, **_: object) -> bool:
    """What counts as right in "equal": all that ends by itself."""
    return True


GRADERS = {"equal": right, "spread": right_by_characters}


def overrides(case: Case, folder: Path) -> list[str]:
    """Of the quickstart's recipe: what the case makes of it."""
    never = ["train.steps=100000", "train.evaluate_every=0", "checkpoint.every=0", "data.held_out=[]"]
    if case.name == "quickstart":
        return never
    return [
        *never,
        f'model.path="{folder / "model"}"',
        f'data.train=["{folder / "prompts.parquet"}"]',
        f'verdict.modes={{random = "benchmarks.step.cases:{GRADERS[case.name].__name__}"}}',
        f"data.max_prompt_tokens={case.prompt_tokens}",
        f"rollout.max_answer_tokens={case.answer_tokens}",
        f"train.groups_per_step={case.groups}",
        f"train.updates_per_step={case.updates}",
        f"optimizer.learning_rate={case.learning_rate}",
    ]


def write(case: Case, folder: Path) -> None:
    """The random model with a tokenizer, and its prompts."""
    if case.name == "quickstart":
        return
    import pyarrow
    import pyarrow.parquet
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    draws, model = np.random.default_rng(0), folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(f"{QUICKSTART}/model")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"  # a prompt has no more tokens than the case says
    tokenizer.save_pretrained(model)
    torch.manual_seed(0)
    ends = draws.choice(np.arange(700, VOCABULARY), VOCABULARY // LAST[case.name], replace=False).tolist()
    config = Qwen2Config(**MODEL, bos_token_id=None, pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(ends))
    Qwen2ForCausalLM(config).save_pretrained(model)
    path = model / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": config.eos_token_id, "pad_token_id": tokenizer.pad_token_id}))
    texts = [_prompt(tokenizer, draws, case.prompt_tokens) for _ in range(512)]
    rows = [
        {
            "data_source": "random",
            "prompt": [{"role": "user", "content": text}],
            "ability": "none",
            "reward_model": {"style": "rule", "ground_truth": "0"},
        }
        for text in texts
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "prompts.parquet")


def _prompt(tokenizer: object, draws: np.random.Generator, length: int) -> str:
    """A text of exactly so many tokens."""
    while True:
        text = tokenizer.decode(draws.integers(300, TEXT_TOKENS, length).tolist())
        if len(tokenizer.encode(text)) == length:
            return text
