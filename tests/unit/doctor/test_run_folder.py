"""A run's disk, against all that will lie there at once."""

from dataclasses import replace

import pytest

from megatron_nft.config import load_config
from megatron_nft.doctor.machine import Machine
from megatron_nft.doctor.run_folder import check_run_folder
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.plan.disk import plan_disk

RECIPE, MODEL = "launch/recipes/quickstart.toml", "tests/assets/quickstart/model"
SETTINGS = ["checkpoint.every=4", "train.steps=16", "run.overwrite=false"]


@pytest.fixture
def wrong(tmp_path):
    """Why a disk with 40 MB free won't do for the quickstart's model of 1,067,136 fp32 numbers; nothing if it does."""

    def check(*overrides):
        config = load_config(RECIPE, [f"run.dir={tmp_path}", *SETTINGS, *overrides])
        machine = replace(Machine.this_one(), disk_usage=lambda path: (0, 0, 40_000_000))
        (row,) = check_run_folder(machine, config, read_hf_config(MODEL))
        return f"{row.reason} -> {row.remedy}" if row.status == "FAIL" else ""

    return check


def test_what_a_run_keeps_at_once_by_hand():
    config = load_config(RECIPE, SETTINGS)
    disk = plan_disk(config, read_hf_config(MODEL))
    assert disk.checkpoint == 1_067_136 * (4 + 4 + 8), "weight, master, two moments"
    assert (disk.checkpoints, disk.model) == (3, 1_067_136 * 4), "two are kept, a third is being written"
    assert plan_disk(load_config(RECIPE, ["actor.precision=bf16"]), read_hf_config(MODEL)).checkpoint == 1_067_136 * 14


def test_room_for_the_model_but_not_for_the_checkpoints(wrong):
    assert wrong().startswith(
        "the trained model takes 4.1 MiB, 3 checkpoints of 16.3 MiB at once 48.8 MiB -> make room"
    )
    assert "or lower checkpoint.keep_last" in wrong()
    assert "4 checkpoints of" in wrong("checkpoint.keep_every=12")
    assert "2 checkpoints of" not in wrong("checkpoint.keep_last=1") and wrong("checkpoint.keep_last=1") == ""
    assert wrong("train.steps=4") == "", "there will be one only"
    assert wrong("checkpoint.every=0") == ""


def test_what_is_there_counts(wrong, tmp_path):
    folder = tmp_path / "quickstart/checkpoints/step_4"
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(bytes(10_000_000))
    assert "9.5 MiB are there" in wrong()
    (folder / "__0_1.distcp").write_bytes(bytes(10_000_000))
    assert wrong() == ""
