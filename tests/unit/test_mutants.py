"""The patches of tests/mutants: each applies to the tree as it is, and names tests that are there.

That those tests notice is what `python tests/mutants/run.py` shows, in minutes.
"""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("mutants_run", "tests/mutants/run.py")
mutants = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mutants)

GOOD = """Breaks: nothing
Noticed by: tests/unit/test_layers.py -k "short and files"

--- a/file.txt
+++ b/file.txt
@@ -1,2 +1,2 @@
 one
-two
+three
"""


def test_every_patch_applies_and_names_tests_that_are_there():
    found = mutants.find_mutants([])
    assert len(found) >= 27
    for mutant in found:
        mutants.apply(mutant.patch, mutants.TREE, "--check")
        assert all(Path(word.partition("::")[0]).exists() for (word, *_) in mutant.noticed_by), mutant.name
    assert len({mutant.name.partition("_")[0] for mutant in found}) == len(found), "a number is given once"


def test_a_patch_changes_the_copy_or_fails_loudly(tmp_path):
    patch, tree = tmp_path / "01_x.patch", tmp_path / "tree"
    tree.mkdir()
    patch.write_text(GOOD)
    mutant = mutants.read_mutant(patch)
    assert mutant.breaks == "nothing" and mutant.noticed_by == (("tests/unit/test_layers.py", "-k", "short and files"),)
    (tree / "file.txt").write_text("one\ntwo\n")
    mutants.apply(patch, tree)
    assert (tree / "file.txt").read_text() == "one\nthree\n"
    with pytest.raises(mutants.MutantError, match=r"01_x\.patch no longer applies"):
        mutants.apply(patch, tree)
    patch.write_text(GOOD.partition("\n")[2])
    with pytest.raises(mutants.MutantError, match="needs lines `Breaks"):
        mutants.read_mutant(patch)


def test_what_a_run_of_tests_says(tmp_path):
    (tmp_path / "test_x.py").write_text("def test_good(): pass\ndef test_bad(): assert 0, 'why'\n")
    assert mutants.run_tests(tmp_path, [["test_x.py", "-k", "good"]]) is None
    assert mutants.run_tests(tmp_path, [["test_x.py"]]) == "test_x.py::test_bad"
    (tmp_path / "test_x.py").write_text("import none_such\n")
    with pytest.raises(mutants.MutantError, match="ended with 2"):
        mutants.run_tests(tmp_path, [["test_x.py"]])
