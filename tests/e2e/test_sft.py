"""`megatron-nft sft` as it is given: it learns, leaves a run's folder, and stopped, goes on as if it had never been."""

import json
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from megatron_nft import sft
from megatron_nft.run import supervised
from tests.e2e.driver import call, records, refused, same_bits, steps

pytestmark = pytest.mark.e2e
RECIPE = "launch/quickstart/pupils.toml"
SMALL = ["model.path=tests/assets/quickstart/model", "train.updates_per_step=2", "train.groups_per_step=16",
         "checkpoint.every=2", "optimizer.warmup_updates=2", "optimizer.decay_updates=0", "sft.order=shuffled",
         "actor.tp=2"]  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = [(f"Ann has {n} pens. She buys 2 more.", f"buys: {n}+2={n + 2}\n\\boxed{{{n + 2}}}") for n in range(40)]
    texts.append((texts[0][0], ""))
    path.write_text("".join(json.dumps({"prompt": p, "response": a}) + "\n" for p, a in texts))
    return path


def run(shared, rows, name, *overrides):
    """On processes that are shared."""
    with mock.patch.multiple(
        supervised,
        ray_cluster=lambda config: nullcontext(),
        new_attempt=lambda folder: None,
        Actors=lambda config, placement, logs: shared.actors(config),
    ):
        places = [f'data.train=["{rows}"]', f"run.dir={rows.parent}", f"run.name={name}"]
        return call(sft.main, RECIPE, *SMALL, *places, *overrides)


def test_it_learns_and_goes_on_bit_by_bit(shared, rows):
    straight = run(shared, rows, "straight", "train.steps=4")
    assert straight.status == 0, straight.err
    assert "data: 40 given answers (0 too long, 1 blank left out)" in straight.out
    folder = rows.parent / "straight"
    losses = [r["nft/loss"] for r in steps(folder)]
    assert losses[-1] < 0.7 * losses[0]
    assert (folder / "report.html").exists() and (folder / "recipe.toml").exists()
    assert not any(name.startswith(("nft/ratio", "nft/moved", "rollout/")) for name in steps(folder)[0])

    falling = run(shared, rows, "falling", "train.steps=2", "optimizer.decay_updates=2")
    assert falling.status == 0, falling.err
    assert [r["actor/learning_rate"] for r in steps(rows.parent / "falling")] != [
        r["actor/learning_rate"] for r in steps(folder)[:2]
    ]

    halves = [run(shared, rows, "halves", f"train.steps={n}") for n in (2, 4)]
    assert [half.status for half in halves] == [0, 0], halves[1].err
    assert "resumed from" in halves[1].out
    assert records(rows.parent / "halves") == records(folder)
    same_bits(folder / "checkpoints" / "step_4", rows.parent / "halves" / "checkpoints" / "step_4")
    one, other = (
        load_file(path)
        for path in (sorted((rows.parent / n / "hf").glob("*.safetensors"))[0] for n in ("straight", "halves"))
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    done = run(shared, rows, "halves", "train.steps=4")
    assert done.status == 0 and "resumed" not in done.out, "it has come to its end"


def test_what_is_no_recipe_of_given_answers(tmp_path, rows):
    given = [RECIPE, *SMALL, f'data.train=["{rows}"]', f"run.dir={tmp_path}"]
    for override, words in (
        ("algorithm.name=nft", 'algorithm.name = "nft" learns from sampled answers; set "sft"'),
        ('data.held_out=["x.parquet"]', "data.held_out is for a run with engines"),
        ("rollout.temperature=0.5", "rollout.temperature = 0.5 is of sampled answers"),
        ("algorithm.neg_weight=0.5", 'algorithm.neg_weight = 0.5 is not read by "sft"'),
    ):
        done = call(sft.main, *given, override)
        assert done.status == 2 and words in done.err, (override, done.err)
    assert 'algorithm.name = "sft" learns given answers' in refused(tmp_path, "algorithm.name=sft").err
