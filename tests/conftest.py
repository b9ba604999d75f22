"""What tests of different folders share."""

import os

import pytest

TAKES_MINUTES = pytest.mark.skipif("NFT_LONG_TESTS" not in os.environ, reason="takes minutes: set NFT_LONG_TESTS=1")
"""Of a test that CI has no time for; what it covers, others in its file cover in part."""
RUN = ["run.overwrite=false", "checkpoint.every=3", "train.evaluate_every=3", "train.groups_per_step=4",
       "evaluate.max_prompts=12", "observe.save_batches=true", "rollout.kv_cache_gib=0.25"]  # fmt: skip


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """The folder of a quickstart with RUN and six steps, without an interruption."""
    from tests.e2e.test_train import assert_no_survivors, start

    folder = tmp_path_factory.mktemp("straight")
    process, mark = start(folder, *RUN, "train.steps=6")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_no_survivors(mark)
    return folder / "quickstart"
