"""What vLLM reads of a model's folder: the files that training reads, whatever else lies there."""

from megatron_nft.rollout.vllm.environment import model_settings

MODEL = "tests/assets/quickstart/model"


def test_mistrals_own_files_are_not_taken():
    """Published folders of Mistral have params.json and consolidated.safetensors, too, which vLLM prefers."""
    formats = ("load_format", "config_format", "tokenizer_mode")
    settings = model_settings(MODEL, 64, "cpu", starts_empty=False)
    assert [settings[name] for name in formats] == ["hf", "hf", "hf"]
    settings = model_settings(MODEL, 64, "cpu", starts_empty=True)
    assert [settings[name] for name in formats] == ["dummy", "hf", "hf"]
