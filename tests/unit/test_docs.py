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


def test_the_tests_that_hold_a_claim_are_there():
    named = re.findall(r"`((?:unit|parallel|e2e|slurm|chaos|gpu)/[\w/.]+)`", Path("tests/README.md").read_text())
    named += re.findall(r"`(tests/[\w/]+\.(?:py|sh))`", "".join(p.read_text(encoding="utf-8") for p in PAGES))
    paths = {name if name.startswith("tests/") else f"tests/{name}" for name in named}
    assert len(paths) > 60 and sorted(p for p in paths if not Path(p).exists()) == []


def test_every_test_file_holds_a_claim():
    table = Path("tests/README.md").read_text()
    files = [p.relative_to("tests") for p in Path("tests").rglob("test_*.py") if p.parts[1] != "gpu"]
    rooms = {str(f) for f in files if f"`{f}`" in table or f"`{f.parent}/`" in table}
    assert sorted(str(f) for f in files if str(f) not in rooms) == []


def test_the_readme_is_a_map():
    text = Path("README.md").read_text()
    assert len(text.splitlines()) <= MAX_README_LINES
    rooms = {p.parent.name for p in Path("megatron_nft").glob("*/__init__.py")}
    assert sorted(room for room in rooms if f"{room}/" not in text and f"`{room}`" not in text) == []
    assert text.index("source .venv/bin/activate") < text.index("python -m megatron_nft")
