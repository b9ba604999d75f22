"""samples.jsonl: what is kept, what is sampled again, and files that are refused."""

import json
import multiprocessing
import os
import random

import numpy as np
import pytest

from megatron_nft.evaluation.samples import SamplesError, SamplesFile
from megatron_nft.types import Prompt, Rollout, RolloutGroup

SETTINGS = {"model": "m", "temperature": 0.6, "top_p": 0.7}
K = 3


def prompt(number, tokens=(1, 2), gold="7"):
    return Prompt(
        prompt_id=f"aime/{number}",
        text="?",
        token_ids_P=np.array(tokens, np.int32),
        ground_truth=gold,
        data_source="aime",
    )


def group(asked, count=K):
    rollouts = tuple(
        Rollout(
            text=f"answer {i} to {asked.prompt_id} \ud83d\x00\n\\boxed{{é}}",  # a model may say anything
            token_ids_A=np.zeros(i + 1, np.int32),
            engine_logprobs_A=np.zeros(i + 1, np.float32),
            truncated=i == 2,
            policy_version=0,
        )
        for i in range(count)
    )
    return RolloutGroup(prompt=asked, rollouts=rollouts)


def write(path, numbers, settings=SETTINGS):
    with SamplesFile(path, settings) as samples:
        for number in numbers:
            if samples.answers(prompt(number), K) is None:
                samples.append(group(prompt(number)))


def test_answers_come_back_as_they_were(tmp_path):
    write(tmp_path / "deep" / "s.jsonl", range(4))
    with SamplesFile(tmp_path / "deep" / "s.jsonl", SETTINGS) as samples:
        answers = samples.answers(prompt(2), K)
        assert [a.text for a in answers] == [r.text for r in group(prompt(2)).rollouts]
        assert [(a.num_tokens, a.truncated) for a in answers] == [(1, False), (2, False), (3, True)]
        assert samples.answers(prompt(4), K) is None


def test_another_count_prompt_or_gold_is_sampled_again(tmp_path):
    write(tmp_path / "s.jsonl", [1])
    with SamplesFile(tmp_path / "s.jsonl", SETTINGS) as samples:
        assert samples.answers(prompt(1), K) is not None
        assert samples.answers(prompt(1), K + 1) is None
        assert samples.answers(prompt(1, tokens=(1, 3)), K) is None
        assert samples.answers(prompt(1, gold="8"), K) is None
        samples.append(group(prompt(1), K + 1))
    with SamplesFile(tmp_path / "s.jsonl", SETTINGS) as samples:
        assert samples.answers(prompt(1), K + 1) is not None


def test_cut_anywhere_and_written_on_it_is_the_same(tmp_path):
    write(tmp_path / "whole.jsonl", range(12))
    whole = (tmp_path / "whole.jsonl").read_bytes()
    rng = random.Random(1)
    for cut in [0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))]:
        (tmp_path / "cut.jsonl").write_bytes(whole[:cut])
        write(tmp_path / "cut.jsonl", range(12))
        assert (tmp_path / "cut.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SETTINGS | {"temperature": 1.0}, "temperature was 0.6 there and is 1.0 now"),
        (SETTINGS | {"model": "n"}, "model was 'm' there and is 'n' now"),
        (SETTINGS | {"seed": 2}, "seed was None there and is 2 now"),
        ({"model": "m", "temperature": 0.6}, "top_p was 0.7 there and is None now"),
    ],
)
def test_samples_of_another_evaluation_are_refused_and_stay(tmp_path, settings, message):
    write(tmp_path / "s.jsonl", [1])
    before = (tmp_path / "s.jsonl").read_bytes()
    with pytest.raises(SamplesError, match=message):
        SamplesFile(tmp_path / "s.jsonl", settings)
    assert (tmp_path / "s.jsonl").read_bytes() == before


ODD_ANSWERS = '{"prompt_id": "aime/9", "digest": "", "answers": [{"said": "34"}]}'
ANOTHER_HEADER = '{"evaluation": {"model": "m"}}'


@pytest.mark.parametrize(
    "line", ['{"prompt_id": "aime/9", "ans', "[]", "null", '{"other": 1}', "\xff", ODD_ANSWERS, ANOTHER_HEADER]
)
def test_a_damaged_line_is_named(tmp_path, line):
    write(tmp_path / "s.jsonl", [1])
    with (tmp_path / "s.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(SamplesError, match="line 3 is damaged; delete that line"):
        SamplesFile(tmp_path / "s.jsonl", SETTINGS)


def test_a_file_of_something_else_is_refused(tmp_path):
    line = {"prompt_id": "a/1", "digest": "", "answers": []}
    (tmp_path / "s.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(SamplesError, match="its first line has no settings"):
        SamplesFile(tmp_path / "s.jsonl", SETTINGS)


def _open(path, found):
    try:
        SamplesFile(path, SETTINGS)
    except SamplesError as error:
        found.put(str(error))


def test_two_processes_do_not_write_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    with SamplesFile(tmp_path / "s.jsonl", SETTINGS):
        found = context.SimpleQueue()
        process = context.Process(target=_open, args=(tmp_path / "s.jsonl", found))
        process.start()
        process.join(30)
        assert f"{tmp_path} is in use by process {os.getpid()} on " in found.get()


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SamplesError, match=r"can't write .*--out\)"):
        SamplesFile(tmp_path / "file" / "s.jsonl", SETTINGS)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints"])
def test_a_runs_own_folder_is_refused(tmp_path, name):
    """It has a recipe.toml and a report.html, too."""
    (tmp_path / name).mkdir()
    with pytest.raises(SamplesError, match=r"is a run's folder, .* another --out, such as .*/evaluation"):
        SamplesFile(tmp_path / "samples.jsonl", SETTINGS)
    SamplesFile(tmp_path / "evaluation" / "samples.jsonl", SETTINGS).__exit__()
