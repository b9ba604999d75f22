"""How a run that has ended is told to go on: what would come again has to be seen to first."""

import pytest

from megatron_nft.config import RecipeError, load_config
from megatron_nft.data.errors import DataError
from megatron_nft.run.around import TryAgain, run_in_folder


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            DataError("row 3 has no prompt"),
            "first see to what the error says, or it comes again; then the same command",
        ),
        (RecipeError("no such grader"), "first see to what the error says, or it comes again; then the same command"),
        (RuntimeError("unforeseen"), "first see to what the error says, or it comes again; then the same command"),
        (TryAgain("lost"), "the same command begins again"),
        (KeyboardInterrupt(), "the same command begins again"),
    ],
)
def test_what_comes_again_has_to_be_seen_to_first(tmp_path, capsys, error, told):
    config = load_config("launch/recipes/quickstart.toml", [f'run.dir="{tmp_path}"', "run.name=one"])

    def live(*parts):
        raise error from OSError("its cause") if isinstance(error, TryAgain) else None

    with pytest.raises(type(error)):
        run_in_folder(config, live, starts_processes=False, announce=lambda line: None)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  next "))
    assert line.split(maxsplit=1)[1].startswith(told)
