"""Every test of this folder is marked `contract`, and skipped, with the reason, where there are no CUDA wheels."""

from importlib.metadata import distributions
from pathlib import Path

import pytest

THERE = {distribution.name.lower().replace("-", "_") for distribution in distributions()}
MISSING = [name for name in ("transformer_engine_torch", "vllm") if name not in THERE]
REASON = f"{', '.join(MISSING)} not installed here; ./tests/contract/run.sh has an environment of its own"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The hook sees the tests of other folders, too."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.contract)
            if MISSING:
                item.add_marker(pytest.mark.skip(REASON))
