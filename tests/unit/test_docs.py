"""The documentation points at what is there: links between pages, their headings, tests that hold a claim."""

import re
from pathlib import Path

PAGES = sorted(p for p in Path().rglob("*.md") if not p.parts[0].startswith(".") and p.parts[0] != "runs")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
MAX_README_LINES = 220


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def test_links_lead_somewhere():
    dead = []
    for page in PAGES:
        for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target) if target else page
            if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
                dead.append(f"{page}: {target}#{anchor}")
    assert len(PAGES) > 30 and dead == []


NAMED = set(
    re.findall(r"`((?:unit|parallel|e2e|slurm|chaos|gpu|contract)/[\w/.]*)`", Path("tests/README.md").read_text())
)
"""What tests/README.md names as holding a claim."""


def test_the_tests_that_hold_a_claim_are_there():
    elsewhere = re.findall(r"`tests/([\w/]+\.(?:py|sh))`", "".join(p.read_text(encoding="utf-8") for p in PAGES))
    assert len(NAMED) > 50
    assert sorted(name for name in NAMED.union(elsewhere) if not Path("tests", name).exists()) == []


def test_every_test_file_is_named():
    """By itself, or with its folder."""
    files = [str(path.relative_to("tests")) for path in Path("tests").rglob("test_*.py")]
    assert [file for file in sorted(files) if not is_named(file)] == []


def is_named(file: str) -> bool:
    folders = {name for name in NAMED if name.endswith("/") and name.count("/") > 1} | {"gpu/", "contract/"}
    return file in NAMED or any(file.startswith(folder) for folder in folders)


def test_the_readme_is_a_map():
    text = Path("README.md").read_text()
    tables = text[text.index("## Published results") : text.index("## Acknowledgement")]
    assert len(text.splitlines()) - len(tables.splitlines()) <= MAX_README_LINES
    rooms = {p.parent.name for p in Path("megatron_nft").glob("*/__init__.py")}
    assert sorted(room for room in rooms if f"{room}/" not in text and f"`{room}`" not in text) == []
    assert text.index("source .venv/bin/activate") < text.index("python -m megatron_nft")


def test_the_house_is_as_the_readme_draws_it():
    """Every file and folder that its tree names is there."""
    tree = re.search(r"## The house\n\n```\n(.*?)```", Path("README.md").read_text(), re.S)[1]
    missing, under = [], Path()
    for line in tree.splitlines():
        if not line.startswith(" "):
            under = Path()
        names = re.match(r" *((?:[\w./]+(?:/|\.py) ?)*)", line)[1].split()
        if line.startswith("   "):
            continue  # goes on from the line above
        missing += [name for name in names if not (under / name).exists()]
        if line.rstrip() == "megatron_nft/":
            under = Path("megatron_nft")
    assert missing == [] and "smoke/" in tree
