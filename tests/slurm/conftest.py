"""One emulated Slurm for all tests of the folder."""

import pytest

from tests.slurm.emulated import EmulatedSlurm
from tests.slurm.jobs import Submit


@pytest.fixture(scope="session")
def slurm():
    with EmulatedSlurm(16) as cluster:
        yield cluster


@pytest.fixture
def submit(slurm, tmp_path):
    return Submit(slurm, tmp_path)
