"""launch/download_data.sh, from a folder: names, every problem once, what is missing."""

import os
import subprocess
import sys

import datasets
import pytest

from tests.hub import Hub

AUTHORS = [
    "dapo-math-17k_10boxed", "aime-2024-boxed_w_answer", "aime2025_32_dapo_boxed_w_answer",
    "amc2023_32_dapo_boxed_w_answer", "math500_boxed", "minerva_math", "olympiadbench",
]  # fmt: skip
HERE = ["dapo-math-17k", "aime24", "aime25", "amc23", "math500", "minerva", "olympiad"]


@pytest.fixture
def offline(tmp_path):
    """Four rows in each file, of three problems: the same prompt with another answer is another one."""
    rows = [
        {"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": gold, "style": "rule"},
         "data_source": "math_dapo_boxed", "extra_info": {"index": i}}
        for i, (text, gold) in enumerate([("1+1", "2"), ("1+2", "3"), ("1+1", "2"), ("1+1", "3")])
    ]  # fmt: skip
    folder = tmp_path / "offline"
    folder.mkdir()
    for name in AUTHORS:
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return folder


def download(tmp_path, *arguments, **variables):
    environment = {**os.environ, "PYTHON": sys.executable, "DATA": str(tmp_path / "data"), **variables}
    return subprocess.run(["launch/download_data.sh", *arguments], env=environment, capture_output=True, text=True)


def test_every_problem_once_under_our_names(tmp_path, offline):
    done = download(tmp_path, str(offline))
    assert done.returncode == 0, done.stderr
    assert f"data: {tmp_path}/data/aime24.parquet, 3 problems of 4 rows\n" in done.stdout
    assert sorted(os.listdir(tmp_path / "data")) == sorted(f"{name}.parquet" for name in HERE)
    for name in HERE:
        rows = datasets.Dataset.from_parquet(str(tmp_path / "data" / f"{name}.parquet"), cache_dir=tmp_path / "cache")
        assert [row["extra_info"]["index"] for row in rows] == [0, 1, 3]
        assert rows[2]["reward_model"] == {"ground_truth": "3", "style": "rule"}


def test_what_is_there_is_taken_and_what_is_missing_is_listed(tmp_path, offline):
    (offline / "math500_boxed.parquet").unlink()
    (offline / "minerva_math.parquet").write_bytes(b"no parquet")
    done = download(tmp_path, str(offline))
    assert done.returncode == 1 and "error: 2 of 7 files are missing" in done.stderr
    assert (
        f"missing: neither math500.parquet nor math500_boxed.parquet in {offline}; it is math500_boxed" in done.stderr
    )
    assert f"missing: minerva.parquet: {offline}/minerva_math.parquet was not taken" in done.stderr
    there = [name for name in HERE if name not in ("math500", "minerva")]
    assert sorted(os.listdir(tmp_path / "data")) == sorted(f"{name}.parquet" for name in there)
    assert download(tmp_path, "--all").returncode == 2


def test_from_the_hub(tmp_path, offline):
    hub_file = tmp_path / "hub/data/dapo-math-17k.parquet"
    hub_file.parent.mkdir(parents=True)
    hub_file.symlink_to(offline / "dapo-math-17k_10boxed.parquet")
    with Hub({"datasets/BytedTsinghua-SIA/DAPO-Math-17k": tmp_path / "hub"}) as hub:
        done = download(tmp_path, "--dapo", HF_ENDPOINT=hub.address, HF_HOME=f"{tmp_path}/home")
    assert done.returncode == 1 and "error: 1 of 2 files are missing" in done.stderr
    assert "missing: aime24.parquet: no data/aime-2024.parquet of https://huggingface.co/datasets/Byted" in done.stderr
    assert f"data: {tmp_path}/data/dapo-math-17k.parquet, 3 problems of 4 rows\n" in done.stdout
