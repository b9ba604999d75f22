"""What is printed: a step's row at any width of a terminal, wrapped lines, progress, the closing table."""

import io
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from megatron_nft.observe import terminal
from megatron_nft.observe.closing import closing_rows
from megatron_nft.observe.metrics import STAGES
from megatron_nft.observe.report import Report
from megatron_nft.observe.step_line import GAP, StepView, duration, log_line, short_number, table_head, table_row
from megatron_nft.observe.terminal import Console, Progress, closing_table
from tests.terminal import pseudo_terminal

CLOCK = r"\d\d:\d\d:\d\d "


class Terminal(io.StringIO):
    def isatty(self):
        return True


def view(step=12, steps=320, **more):
    metrics = {
        "nft/loss": -1.9e-4, "nft/correct_rate": 0.412, "rollout/answer_tokens_mean": 1234.5, "time/step_s": 754.6,
        "rollout/truncated_fraction": 0.03, "rollout/logprob_gap_mean": 3.04e-7, "perf/rollout_tokens_per_s": 12_345.0,
        "actor/grad_norm": 0.32, "actor/learning_rate": 1e-6, "train/updates": 16 * step, "perf/mfu": 0.412,
        "rollout/groups_mixed": 512, "rollout/groups_all_right": 300, "rollout/groups_all_wrong": 212,
        "memory/gpu_train_gib": 57.7, "time/rollout_s": 509.4, "time/train_s": 178.2, "time/score_s": 58.6,
        "time/sync_s": 5.1,
    } | more  # fmt: skip
    return StepView(step=step, steps=steps, updates=16 * steps, metrics=metrics, accuracy=0.517, eta_s=7500,
                    now=datetime(2026, 11, 28, 11, 17))  # fmt: skip


def test_a_row_at_80_columns_has_what_matters_first():
    assert table_head(view(), 80) == "                acc  right  length   cut    gap  tok/s    time     ETA    ends"
    assert table_row(view(), 80) == "step 12/320   51.7%    41%    1234    3%  3e-07  12.3k  754.6s   2h05m   13:22"
    first = table_row(view(step=1, **{"time/step_s": 7.25, "rollout/answer_tokens_mean": 41}), 80)
    assert first == "step 1/320    51.7%    41%      41    3%  3e-07  12.3k    7.2s   2h05m   13:22"


@pytest.mark.parametrize("width", range(40, 240, 7))
def test_no_row_is_longer_than_the_terminal_and_all_are_aligned(width):
    rows = [table_row(view(step=s, **{"time/step_s": t}), width) for s, t in ((1, 9.0), (12, 754.6), (320, 12_345.0))]
    assert all(len(row) <= width for row in [table_head(view(), width), *rows])
    columns = len(table_head(view(), width))
    assert len({len(row[:columns].rstrip()) for row in rows}) == 1, "the last column ends at the same place"
    assert ("rollout 509.4s" in rows[1]) == (width >= 140)


LARGE = {
    "nft/loss": -123.4, "nft/correct_rate": 1.0, "rollout/answer_tokens_mean": 14_336.0, "time/step_s": 123_456.0,
    "rollout/truncated_fraction": 1.0, "rollout/logprob_gap_mean": 1.5e12, "perf/rollout_tokens_per_s": 1_234_567.0,
    "actor/grad_norm": 123_456.0, "actor/learning_rate": 1e-12, "perf/mfu": 1.0, "memory/gpu_train_gib": 1234.5,
    "rollout/groups_mixed": 1536, "rollout/groups_all_right": 2048, "rollout/groups_all_wrong": 1024,
    "train/updates": 16_000,
}  # fmt: skip
SEVEN_B = {"rollout/groups_mixed": 526, "rollout/groups_all_right": 290, "rollout/groups_all_wrong": 300}
STRANGE = dict.fromkeys(LARGE, float("nan")) | {"time/step_s": 1.0, "actor/grad_norm": float("inf")}


@pytest.mark.parametrize("steps", [4, 320, 100_000])
@pytest.mark.parametrize("metrics", [LARGE, SEVEN_B, STRANGE, {"nft/loss": -98.99999}, {"actor/grad_norm": 99.996}])
def test_no_number_moves_a_column(steps, metrics):
    for eta_s, accuracy in ((7500, 0.517), (1e6, 1.0), (1e8, 0.99951)):
        one = replace(view(step=steps, steps=steps, **metrics), eta_s=eta_s, accuracy=accuracy)
        for width in range(40, 221):
            head, row = table_head(one, width), table_row(one, width)
            assert len(head) <= width and len(row) <= width
            for end in (match.end() for match in re.finditer(r"\S+", head)):
                assert row[end - 1] != " " and row[end : end + 2] in ("", GAP) and row[: end + 1].count("#") == 0, row


def test_numbers_that_have_no_room_are_shorter_or_none():
    row = table_row(replace(view(**LARGE), accuracy=1.0), 220)
    assert " 100%   100%   14.3k  100%" in row and re.search(
        r"-1\.2e\+02       33%   123k  1\.0e-12   100%   1234G      16000", row
    )
    assert re.search(r"  526/1116  ", table_row(view(**SEVEN_B), 120)) and "526/1116" in log_line(view(**SEVEN_B))
    assert "1536/4608" in log_line(view(**LARGE)), "a log has room"
    assert "  #####  " in table_row(view(**{"rollout/logprob_gap_mean": 1e-200}), 80)
    assert [duration(s) for s in (359_999, 360_000, 8.64e6)] == ["99h59m", "4d04h", "100d"]


def test_stages_are_named_above_2_percent_only_the_longest_first():
    row = table_row(view(), 200)
    assert re.search(r"rollout 509\.4s  train 178\.2s  score 58\.6s$", row) and "sync" not in row
    assert log_line(view()).endswith("| rollout 509.4s train 178.2s score 58.6s")
    assert "sync" in STAGES


def test_what_was_not_measured_is_a_dash_in_a_row_and_left_out_of_a_log():
    bare = StepView(
        step=1, steps=2, updates=2, metrics={"time/step_s": 1.0}, accuracy=None, eta_s=1, now=datetime.now()
    )
    assert re.match(r"step 1/2 +- +- +- +- +- +- +1\.0s +1s", table_row(bare, 80))
    assert "acc" not in log_line(bare) and "nan" not in log_line(bare)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (9999, "9999"),
        (12_345, "12.3k"),
        (99_960, "100k"),
        (999_499, "999k"),
        (999_900, "1.0M"),
        (2.5e9, "2.5G"),
    ],
)
def test_counts_take_five_characters(value, text):
    assert short_number(value) == text


def on_a_terminal(columns, say):
    """What appears on a real terminal so wide, line by line; `say` gets a console."""
    with pseudo_terminal(columns) as (stream, shown):
        say(Console(stream))
    return shown.lines


def test_a_head_comes_every_20_rows_and_with_another_width():
    def say(console):
        for step in range(1, 42):
            console.step(view(step=step))

    lines = on_a_terminal(80, say)
    assert [i for i, line in enumerate(lines) if "tok/s" in line] == [0, 21, 42] and len(lines) == 44


def test_long_lines_are_broken_between_words_and_evaluations_lose_their_last_segments():
    metrics = {"eval/greedy_accuracy": 0.9, "eval/avg_at_k": 0.8, "eval/k": 4, "eval/truncated_fraction": 0.0,
               "eval/prompts": 256, "time/evaluate_s": 6.4}  # fmt: skip

    def say(console):
        console.say("data: 4000 training prompts (0 too long and 0 without an answer left out), 256 held out")
        console.say("  at /a/path/" + 90 * "x")
        console.evaluation(16, metrics, metrics)

    lines = on_a_terminal(80, say)
    assert lines[:2] == ["data: 4000 training prompts (0 too long and 0 without an answer left out), 256", "  held out"]
    assert "".join(lines[2:4]).split() == ["at", "/a/path/" + 90 * "x"], "a path is never cut"
    assert lines[4] == "evaluation at step 16 | greedy 0.900 (+0.000) | avg@4 0.800 (+0.000)"
    assert on_a_terminal(140, say)[-1].endswith(" | truncated 0.000 | 256 prompts | 6.4s")


def test_closing_says_what_was_gained_and_where_the_files_are(make_config):
    config, stream = make_config(), io.StringIO()
    report, folder = Report(config, stream), config.run_dir
    report.add_evaluation(0, {"eval/greedy_accuracy": 0.25})
    report.add_evaluation(40, {"eval/greedy_accuracy": 0.5})
    report.close("done")
    report.close("failed: closed twice")
    text = stream.getvalue()
    assert "test: done" in text and "0.250 -> 0.500 (+25.0 points)" in text and "closed twice" not in text
    assert str(folder / "report.html") in text and "0 of 40" in text
    assert not re.search("^  (model|next|checkpoints)", text, re.M), "nothing was saved"


def test_closing_names_model_checkpoints_and_the_next_command(make_config):
    config, stream = make_config(), io.StringIO()
    report, folder = Report(config, stream), config.run_dir
    for name in ("hf", "checkpoints/step_9", "checkpoints/step_10", "checkpoints/step_12.partial"):
        (folder / name).mkdir(parents=True)
    (folder / "hf" / "config.json").write_text("{}")
    report.close("done")
    text = stream.getvalue()
    assert f"  model        {folder}/hf\n" in text and f"  checkpoints  {folder}/checkpoints: step_9, step_10\n" in text
    command = f"  next         megatron-nft evaluate {folder}/recipe.toml --model {folder}/hf"
    assert f"{command} --data FILE\n" in text, "the recipe has no held-out prompts"
    held_out = config.data.model_copy(update={"held_out": ["more.jsonl"]})
    for sampled, more in (
        ({"samples": 0}, " --n 1 --temperature 0"),
        ({"samples": 0, "samples_of": {"more": 2}}, " --n 1"),
        ({"samples": 4}, ""),
    ):
        evaluate = config.evaluate.model_copy(update=sampled)
        stream = io.StringIO()
        Report(config.model_copy(update={"data": held_out, "evaluate": evaluate}), stream).close("done")
        assert f"{command}{more}\n" in stream.getvalue()
    stream = io.StringIO()
    Report(config, stream).close("failed: ValueError: two\nlines")
    assert "test: failed: ValueError: two\n" in stream.getvalue()
    assert "the same command goes on from step_10\n" in stream.getvalue() and "  model" not in stream.getvalue()
    mended = closing_rows(config, "failed: DataError: row 3", [], 1.0, comes_again=True)["next"]
    assert mended == "first see to what the error says, or it comes again; then the same command goes on from step_10"


def test_a_closing_table_keeps_to_the_terminals_width():
    lines = closing_table({"run": "done", "next": "megatron-nft evaluate " + "word " * 20}, 60).splitlines()
    assert 50 < max(map(len, lines)) <= 60 and all(line.startswith("        ") for line in lines[3:-1])


def test_progress_is_live_on_a_terminal_and_silent_for_short_stages_elsewhere(monkeypatch):
    monkeypatch.setattr(terminal, "TTY_REDRAW_S", 0.0)
    live, log = Terminal(), io.StringIO()
    for stream in (live, log):
        progress = Progress(stream, "rollout", 512, "answers")
        progress.update(7)
        progress.clear()
    assert live.getvalue() == "\r\x1b[K  rollout 7/512 answers, 0s\r\x1b[K" and log.getvalue() == ""
    monkeypatch.setattr(terminal, "LOG_LINE_S", 0.0)
    Progress(log, "train", None, "").update(3)
    assert re.fullmatch(CLOCK + "  train 3, 0s\n", log.getvalue())


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (192, "3m12s"), (7500, "2h05m")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_the_screens_of_the_documentation_keep_to_their_width(columns):
    lines = Path(f"megatron_nft/observe/screens/{columns}_columns.txt").read_text().splitlines()
    head = next(line for line in lines if "tok/s" in line)
    rows = [line for line in lines if re.match(r"step \d+/\d+ ", line)]
    assert max(map(len, lines)) <= columns and len(rows) >= 4
    ends = [match.end() for match in re.finditer(r"\S+", head)]
    assert all(row[end - 1] != " " and row[end : end + 1] in (" ", "") for row in rows for end in ends)
