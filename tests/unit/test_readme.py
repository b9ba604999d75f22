"""tests/README.md says which test holds which claim: those tests are there, and each test file is named."""

import re
from pathlib import Path

TESTS = Path("tests")
NAMED = set(re.findall(r"`((?:unit|parallel|e2e|slurm|chaos|gpu)/[\w/.]*)`", (TESTS / "README.md").read_text()))


def test_what_is_named_is_there():
    assert len(NAMED) > 50
    assert [name for name in sorted(NAMED) if not (TESTS / name).exists()] == []


def test_every_test_file_is_named():
    """By itself, or with its folder."""
    files = [str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py")]
    own = {"unit/test_readme.py"}  # holds no claim but this one
    assert [file for file in sorted(files) if file not in own and not named(file)] == []


def named(file: str) -> bool:
    folders = {name for name in NAMED if name.endswith("/") and name.count("/") > 1} | {"gpu/"}
    return file in NAMED or any(file.startswith(folder) for folder in folders)
