"""A folder that was meant for something else is told what it is, and what would do."""

import pytest

from checkpoint_tools import hf_to_megatron, megatron_to_hf, verify
from checkpoint_tools.show import main as inspect


def test_a_folder_of_another_kind_is_called_what_it_is(tmp_path, capsys):
    assert inspect(["tests/assets/quickstart/model"]) == 1
    said = capsys.readouterr().err
    assert "it has no metadata.json; it is an HF folder: megatron-nft evaluate" in said and "hf-to-megatron" in said
    assert inspect([str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("no Megatron checkpoint, it has no metadata.json\n")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_config.json"], "; it is a PEFT folder, of adapters: a recipe's lora.adapter takes it"),
        (
            ["checkpoints/step_2/metadata.json"],
            "; it is a run's folder: the newest checkpoint is {}/checkpoints/latest",
        ),
        (["checkpoints/step_2/metadata.json", "hf/config.json"], "{}/checkpoints/latest, its model {}/hf"),
        (["latest/metadata.json"], "; it has a run's checkpoints: the newest is {}/latest"),
    ],
)
def test_a_folder_that_is_meant_otherwise_is_told_what_would_do(tmp_path, capsys, files, words):
    folder = tmp_path / "given"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    for call in (
        lambda: inspect([str(folder)]),
        lambda: megatron_to_hf.main(["--megatron", str(folder), "--hf", str(folder), "--out", str(tmp_path / "out")]),
        lambda: hf_to_megatron.main(["--hf", str(folder), "--out", str(tmp_path / "out")]),
        lambda: verify.main(["--hf", str(folder)]),
    ):
        assert call() == 1
        said = capsys.readouterr().err
        assert words.replace("{}", str(folder)) in said and "model.path =" not in said


def test_what_is_a_checkpoint_already_is_not_converted(tmp_path, hf, capsys):
    assert hf_to_megatron.main(["--hf", str(hf), "--out", str(tmp_path / "once")]) == 0
    assert hf_to_megatron.main(["--hf", str(tmp_path / "once"), "--out", str(tmp_path / "twice")]) == 2
    assert "once; it is a Megatron checkpoint: megatron-nft convert megatron-to-hf" in capsys.readouterr().err
