"""What the FP8 recipes mean to Megatron-Core, and which devices are refused."""

import pytest
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_nft.actor.precision import PRECISIONS, PrecisionError, check_device
from megatron_nft.config import ActorConfig

HOPPER, BLACKWELL, AMPERE = (9, 0), (10, 0), (8, 0)


def test_a_device_that_cannot_is_told_what_it_can():
    for precision in ("fp32", "bf16", "fp8-delayed", "fp8-tensorwise", "fp8-blockwise"):
        check_device(precision, HOPPER, "H100")
    check_device("fp8-mxfp8", BLACKWELL, "B200")
    with pytest.raises(
        PrecisionError, match=r"'fp8-mxfp8' needs compute capability 10\.0, H100 has 9\.0; it can do fp32"
    ):
        check_device("fp8-mxfp8", HOPPER, "H100")
    with pytest.raises(PrecisionError, match=r"it can do fp32, bf16$"):
        check_device("fp8-delayed", AMPERE, "A100")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_megatron_takes_every_format(precision):
    actor = ActorConfig(precision=precision)
    config = TransformerConfig(
        num_layers=4, hidden_size=64, num_attention_heads=4, **PRECISIONS[precision].megatron_arguments(actor)
    )
    assert (config.fp8 is not None) == precision.startswith("fp8")
    if config.fp8:
        assert config.fp8_recipe == precision.removeprefix("fp8-") and not config.first_last_layers_bf16


def test_layers_that_stay_in_bf16():
    actor = ActorConfig(precision="fp8-tensorwise", num_layers_at_start_in_bf16=1)
    arguments = PRECISIONS["fp8-tensorwise"].megatron_arguments(actor)
    assert (arguments["first_last_layers_bf16"], arguments["num_layers_at_start_in_bf16"]) == (True, 1)
    assert arguments["num_layers_at_end_in_bf16"] == 0
