"""doctor in the environment of requirements-gpu.txt, on a machine without a driver: it misses that, nothing else."""

import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = {"python", "versions", "twice", "apex", "TransformerEngine", "driver"}


def doctor(*paths):
    """check -> finding, of what concerns packages; and the exit status."""
    environment = os.environ | {"PYTHONPATH": ":".join(map(str, [*paths, Path.cwd()]))}
    command = [sys.executable, "-m", "megatron_nft.doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    findings = json.loads(done.stdout)
    return [f for f in findings if f["check"] in PACKAGES and f["status"] != "ok"], done.returncode


def test_a_login_node_lacks_the_driver_and_nothing_else():
    found, status = doctor()
    assert [(f["check"], f["status"], f["value"]) for f in found] == [("driver", "warn", "no NVIDIA driver")]
    assert status == 0


def test_an_extension_for_another_torch(tmp_path):
    """Its metadata are in order; of torch it wants a symbol that isn't there, as one that is built for another does."""
    # (without a GPU the actor's room hides it from this process: PathFinder looks at the folders)
    source, copy = Path(PathFinder.find_spec("transformer_engine").origin).parent, tmp_path / "transformer_engine"

    def link_libraries(old, new):
        return os.symlink(old, new) if ".so" in Path(old).suffixes else shutil.copy2(old, new)

    shutil.copytree(source, copy, copy_function=link_libraries, ignore=shutil.ignore_patterns("__pycache__", "jax"))
    (extension,) = copy.rglob("transformer_engine_torch*.so")
    whole = extension.read_bytes()
    extension.unlink()
    extension.write_bytes(whole.replace(b"\0_ZN3c10", b"\0_ZN3c99", 1))
    found, status = doctor(tmp_path)
    wrong = found[0]
    assert status == 1 and [f["check"] for f in found] == ["TransformerEngine", "driver"]
    assert "undefined symbol: _ZN3c99" in wrong["reason"] and "launch/install_gpu.sh" in wrong["remedy"]
