"""Hand-made groups and a minimal recipe for the tests of observe."""

import numpy as np
import pytest

from megatron_nft.config import Config, DataConfig, EvaluateConfig, ModelConfig, ObserveConfig, RunConfig, TrainConfig
from megatron_nft.types import Prompt, Rollout, RolloutGroup, Verdict


@pytest.fixture
def make_group():
    """make_group("right", "wrong", ...): one answer a verdict kind; "+cut" behind a kind truncates its answer."""

    def make(*kinds: str, text: str = "so \\boxed{2}", version: int = 3, name: str = "sums/0") -> RolloutGroup:
        prompt = Prompt(
            prompt_id=name,
            text="1+1=",
            token_ids_P=np.arange(4, dtype=np.int32),
            ground_truth="2",
            data_source="sums",
        )
        rollouts = tuple(
            Rollout(
                text=f"{text} #{i}",
                token_ids_A=np.zeros(10 * (i + 1), dtype=np.int32),
                engine_logprobs_A=np.zeros(10 * (i + 1), dtype=np.float32),
                truncated=kind.endswith("+cut"),
                policy_version=version,
            )
            for i, kind in enumerate(kinds)
        )
        verdicts = tuple(Verdict(kind=kind.removesuffix("+cut"), detail="2") for kind in kinds)
        return RolloutGroup(prompt=prompt, rollouts=rollouts, verdicts=verdicts)

    return make


@pytest.fixture
def make_config(tmp_path):
    """make_config(name=..., overwrite=...): a recipe whose runs go to tmp_path/runs."""

    def make(rollouts_per_step: int = 4, **run) -> Config:
        return Config(
            run=RunConfig(**{"name": "test", "dir": str(tmp_path / "runs")} | run),
            model=ModelConfig(path="/models/tiny-model"),
            data=DataConfig(train=["sums.jsonl"]),
            train=TrainConfig(steps=40, groups_per_step=2, updates_per_step=1),
            evaluate=EvaluateConfig(samples=4),
            observe=ObserveConfig(rollouts_per_step=rollouts_per_step),
        )

    return make
