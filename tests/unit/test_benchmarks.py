"""Benchmarks are called one way, and their pages say what a figure needs: machine, versions, command, date."""

import re
from pathlib import Path

FOLDERS = sorted(path for path in Path("benchmarks").iterdir() if (path / "README.md").is_file())
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("results_*.md"))
TABLE = Path("benchmarks/README.md").read_text()


def test_each_has_its_script_and_says_how_it_is_called():
    assert len(FOLDERS) >= 14
    without = [f.name for f in FOLDERS if not (f / "run.py").is_file()]
    silent = [f.name for f in FOLDERS if f"python -m benchmarks.{f.name}.run" not in (f / "README.md").read_text()]
    assert without == [] and silent == []


def test_no_script_is_called_by_its_path():
    texts = {str(p): p.read_text() for p in Path("benchmarks").rglob("*") if p.suffix in (".md", ".py")}
    assert [name for name, text in texts.items() if re.search(r"python benchmarks/", text)] == []


def test_every_page_has_machine_versions_and_command():
    wanted = {
        "a machine": r"\b(?:2|two) (?:shared |virtual )?cores|\bH100|Linux-\d",
        "versions": r"Python 3\.\d",
        "a command": r"python -m |\./launch/",
    }
    missing = [(str(p), what) for p in PAGES for what, how in wanted.items() if not re.search(how, p.read_text())]
    assert len(PAGES) >= 14 and missing == []


def test_the_table_has_a_row_of_each_with_its_newest_page():
    rows = [line for line in TABLE.splitlines() if line.startswith("| [")]
    for folder in FOLDERS:
        mine = [row for row in rows if row.startswith(f"| [{folder.name}]({folder.name}/)")]
        if not (pages := sorted(folder.glob("results_*.md"))):
            continue  # nothing measured yet
        assert mine and all(row.count(" | ") == 3 for row in mine), f"{folder.name}: subject, figure, anchor, page"
        assert any(f"{folder.name}/{pages[-1].name}" in row for row in mine), pages[-1]
