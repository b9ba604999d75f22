"""What tests of different folders share."""

import os
from importlib.util import find_spec

import pytest

TAKES_MINUTES = pytest.mark.skipif("NFT_LONG_TESTS" not in os.environ, reason="takes minutes: set NFT_LONG_TESTS=1")
"""Of a test that CI has no time for; what it covers, others in its file cover in part."""
RUN = ["run.overwrite=false", "checkpoint.every=3", "train.evaluate_every=3", "train.groups_per_step=4",
       "evaluate.max_prompts=12", "observe.save_batches=true", "rollout.kv_cache_gib=0.25"]  # fmt: skip


TRACKED = ['observe.trackers=["tensorboard", "wandb"]', "observe.wandb_mode=offline"] if find_spec("wandb") else []


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """The folder of a quickstart with RUN and six steps, without an interruption. Beside it is `out`, what it said."""
    from tests.e2e.driver import assert_no_survivors, start

    folder = tmp_path_factory.mktemp("straight")
    process, mark = start(folder, *RUN, *TRACKED, "train.steps=6")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_no_survivors(mark)
    (folder / "out").write_text(out)
    return folder / "quickstart"
