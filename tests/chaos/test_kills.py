"""A handful of disturbances at random places; how to have 200: README.md."""

import pytest

from tests.chaos.driver import KINDS
from tests.chaos.kills import kill_often

pytestmark = pytest.mark.e2e


def test_every_run_goes_on(tmp_path):
    assert len(kill_often(4, seed=1, root=tmp_path, only=("SIGKILL", "node", "SIGTERM", "full disk"))) == 4


@pytest.mark.night("places, kinds and moments that a handful doesn't meet")
@pytest.mark.parametrize("seed", [2, 3])
def test_every_run_goes_on_after_many(tmp_path, seed):
    rows = kill_often(30, seed=seed, root=tmp_path)
    assert len({row.place for row in rows}) >= 6 and len({row.kind for row in rows}) >= len(KINDS) - 3
