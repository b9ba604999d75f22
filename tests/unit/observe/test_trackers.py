"""Trackers with their real packages: what TensorBoard and Weights & Biases get of a run, resumed or not, and how
little one that fails does to it."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from megatron_nft.config import ObserveConfig, RecipeError
from megatron_nft.observe.report import Report
from megatron_nft.run.folder import run_folder

MISSING = [name for name in ("tensorboard", "wandb") if find_spec(name) is None]
HOW_TO = f"no {' and no '.join(MISSING)} here: pip install -r requirements-trackers.txt"
NEEDS_PACKAGES = pytest.mark.skipif(bool(MISSING), reason=HOW_TO)


@pytest.fixture
def make_recipe(make_config):
    """make_recipe(*trackers, **settings of [run]): a recipe of 40 steps with 4 updates each."""

    def make(*trackers, wandb_mode="offline", **run):
        config = make_config(**run)
        train = config.train.model_copy(update={"groups_per_step": 8, "updates_per_step": 4})
        observe = ObserveConfig(trackers=list(trackers), wandb_mode=wandb_mode)
        return config.model_copy(update={"train": train, "observe": observe})

    return make


@pytest.fixture
def make_tracked(make_recipe):
    """The same, for a test that the packages of the trackers are needed for."""
    if MISSING:
        pytest.skip(HOW_TO)
    return make_recipe


def record(report, *steps, scale=1.0, left_out=0):
    for step in steps:
        with report.step(step):
            report.add({"nft/loss": step * scale, "actor/nonfinite_updates": left_out})


def record_three_steps(config, stream=None):
    """An evaluation, steps 1 to 3, and another evaluation."""
    report = Report(config, stream or io.StringIO())
    report.rewind(0)
    report.add_evaluation(0, {"eval/greedy_accuracy": 0.25})
    record(report, 1, 2, 3)
    report.add_evaluation(3, {"eval/greedy_accuracy": 0.5})
    return report


def resume_after_step_1(config, stream=None):
    """Steps 2 to 4 once more, with other values."""
    report = Report(config, stream or io.StringIO())
    report.rewind(1)
    record(report, 2, 3, 4, scale=10.0)
    report.close("done")


def read_tensorboard(folder):
    """Tag -> [(x, value)], of all event files there, without TensorBoard's own clearing away of restarts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(b"".join(parts))
            parts = []


def read_wandb(run_dir):
    """Of each offline run there: its records, once wandb's own process has written them all."""
    runs, deadline = {}, time.monotonic() + 10
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        while not any(r.WhichOneof("record_type") == "exit" for r in runs.setdefault(path.stem, [])):
            assert time.monotonic() < deadline, f"{path} is not finished"
            time.sleep(0.05)
            runs[path.stem] = list(wandb_records(path))
    return runs


def rows_of(records):
    histories = [r.history for r in records if r.WhichOneof("record_type") == "history"]
    return [{("/".join(i.nested_key) or i.key): json.loads(i.value_json) for i in h.item} for h in histories]


def test_tensorboard_has_the_metrics_by_step_and_by_update(make_tracked):
    config, stream = make_tracked("tensorboard"), io.StringIO()
    record_three_steps(config, stream).close("done")
    by_step = read_tensorboard(config.run_dir / "tensorboard" / "by_step")
    assert by_step["nft/loss"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert by_step["train/updates"] == [(0, 0.0), (1, 4.0), (2, 8.0), (3, 12.0), (3, 12.0)]  # two are evaluations
    by_update = read_tensorboard(config.run_dir / "tensorboard" / "by_update")
    assert by_update["nft/loss"] == [(4, 1.0), (8, 2.0), (12, 3.0)]
    assert by_update["eval/greedy_accuracy"] == [(0, 0.25), (12, 0.5)]
    assert f"tensorboard: {config.run_dir / 'tensorboard'}\n" in stream.getvalue()


def test_tensorboard_shows_the_recipe(make_tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_tracked("tensorboard")
    record_three_steps(config).close("done")
    events = EventAccumulator(str(config.run_dir / "tensorboard" / "by_step")).Reload()
    (text,) = events.Tensors("recipe")
    assert b"updates_per_step = 4" in text.tensor_proto.string_val[0]


def test_a_resumed_run_has_every_step_once_in_tensorboard(make_tracked):
    config = make_tracked("tensorboard")
    record_three_steps(config).close("interrupted")
    resume_after_step_1(config)
    by_step = read_tensorboard(config.run_dir / "tensorboard" / "by_step")
    assert by_step["nft/loss"] == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    assert by_step["eval/greedy_accuracy"] == [(0, 0.25)]


def test_wandb_offline_has_metrics_and_recipe(make_tracked):
    config, stream = make_tracked("wandb"), io.StringIO()
    record_three_steps(config, stream).close("done")
    ((_, records),) = read_wandb(config.run_dir).items()
    rows = rows_of(records)
    assert [(r["train/step"], r["train/updates"], r.get("nft/loss")) for r in rows] == [
        (0, 0, None), (1, 4, 1.0), (2, 8, 2.0), (3, 12, 3.0), (3, 12, None)
    ]  # fmt: skip
    assert [r["eval/greedy_accuracy"] for r in rows if "eval/greedy_accuracy" in r] == [0.25, 0.5]
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("megatron_nft", "test")
    recipe = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert recipe["train"]["updates_per_step"] == 4 and recipe["model"]["path"] == config.model.path
    axes = {m.metric.name or m.metric.glob_name: m.metric.step_metric for m in records if m.HasField("metric")}
    assert axes["*"] == "train/step" and "train/updates" in axes
    assert "`wandb sync " in stream.getvalue()


def test_a_resumed_run_is_the_same_one_in_wandb_with_every_step_once(make_tracked):
    config = make_tracked("wandb")
    record_three_steps(config).close("interrupted")
    (first,) = read_wandb(config.run_dir)
    resume_after_step_1(config)
    ((again, records),) = read_wandb(config.run_dir).items()
    assert again == first
    losses = [(r["train/step"], r["nft/loss"]) for r in rows_of(records) if "nft/loss" in r]
    assert losses == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]


def test_a_run_that_goes_back_without_a_stop_has_every_step_once(make_tracked):
    config, stream = make_tracked("tensorboard", "wandb"), io.StringIO()
    report = record_three_steps(config, stream)
    report.rewind(1)
    record(report, 2, 3, 4, scale=10.0)
    report.close("done")
    wanted = [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    assert "given up" not in stream.getvalue()
    assert read_tensorboard(config.run_dir / "tensorboard" / "by_step")["nft/loss"] == wanted
    (records,) = read_wandb(config.run_dir).values()
    assert [(r["train/step"], r["nft/loss"]) for r in rows_of(records) if "nft/loss" in r] == wanted


def test_what_has_been_uploaded_stays_and_the_resumed_run_is_whole_beside_it(make_tracked):
    config = make_tracked("wandb")
    record_three_steps(config).close("interrupted")
    ((first, before),) = read_wandb(config.run_dir).items()
    (file,) = config.run_dir.glob("wandb/offline-run-*/*.wandb")
    file.with_name(f"{file.name}.synced").touch()  # as `wandb sync` does
    resume_after_step_1(config)
    runs = read_wandb(config.run_dir)
    assert runs.pop(first) == before
    (records,) = runs.values()
    assert [r["train/step"] for r in rows_of(records)] == [0, 1, 2, 3, 4]


def test_overwriting_a_run_begins_another_one_in_wandb(make_tracked):
    record_three_steps(make_tracked("wandb")).close("done")
    config = make_tracked("wandb", overwrite=True)
    with run_folder(config, print):
        record_three_steps(config).close("done")
    assert len(read_wandb(config.run_dir)) == 2


def test_updates_that_were_left_out_do_not_count(make_recipe):
    config, stream = make_recipe(), io.StringIO()
    report = Report(config, stream)
    record(report, 1)
    record(report, 2, left_out=3)
    report.close("done")
    assert re.search(r"step 1/40 .* update +4/160\n(.*) step 2/40 .* update +5/160\n", stream.getvalue())


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_said_before_anything_starts(make_recipe, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    config = make_recipe(name)
    with pytest.raises(RecipeError, match=rf'names "{name}".*pip install -r requirements-trackers.txt'):
        Report(config, io.StringIO())
    assert not config.run_dir.exists()


@NEEDS_PACKAGES
def test_wandb_online_without_an_account_is_said_before_anything_starts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "megatron_nft.train", "launch/recipes/quickstart.toml", f"run.dir={tmp_path / 'runs'}",
         'observe.trackers=["wandb"]'],
        env={**os.environ, "HOME": str(tmp_path), "WANDB_API_KEY": "", "PYTHONPATH": "."},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "knows no account here" in done.stderr and 'observe.wandb_mode = "offline"' in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_tracker_that_cannot_write_is_given_up_and_the_run_goes_on(make_tracked):
    config, stream = make_tracked("tensorboard"), io.StringIO()
    config.run_dir.mkdir(parents=True)
    report = Report(config, stream)
    (config.run_dir / "tensorboard").write_text("in the way")
    report.rewind(0)
    record(report, 1, 2)
    report.close("done")
    assert stream.getvalue().count("tensorboard: given up, the run goes on without it (") == 1
    assert len((config.run_dir / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_disk_that_fills_up_under_a_tracker_costs_the_tracker_only(make_tracked, tmp_path):
    config, stream = make_tracked("tensorboard"), io.StringIO()
    small = config.run_dir / "tensorboard"
    report = Report(config, stream)
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", small], capture_output=True).returncode:
        report.close("done")
        pytest.skip("can't mount a small file system here")
    try:
        report.rewind(0)
        record(report, *range(1, 301))
        report.close("done")
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    assert "tensorboard: given up, the run goes on without it (" in stream.getvalue()
    assert len((config.run_dir / "metrics.jsonl").read_text().splitlines()) == 300


RUN_WITHOUT_NETWORK = """
import sys, time
from megatron_nft.config import load_config
from megatron_nft.observe import wandb_tracker
from megatron_nft.observe.report import Report

wandb_tracker.INIT_TIMEOUT_S = 3.0
report = Report(load_config("launch/recipes/quickstart.toml", sys.argv[1:]))
start = time.monotonic()
report.rewind(0)
for step in (1, 2):
    with report.step(step):
        report.add({"nft/loss": float(step)})
assert time.monotonic() - start < 2.0, "a step has waited for the tracker"
report.close("done")
"""


@NEEDS_PACKAGES
def test_no_network_costs_wandb_only_and_no_step_waits_for_it(tmp_path):
    nothing_listens = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_NETWORK, f"run.dir={tmp_path}", 'observe.trackers=["wandb"]'],
        env={**os.environ, **nothing_listens, "PYTHONPATH": "."}, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wandb: given up, the run goes on without it (CommError: " in done.stdout
    assert "quickstart: done" in done.stdout
    assert len((tmp_path / "quickstart" / "metrics.jsonl").read_text().splitlines()) == 2
