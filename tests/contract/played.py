"""The stage of this folder's ranks (tests/parallel/ranks.py): an H100 that is none; layers and casts that compute."""

from tests.contract import casts, device, layers


def play() -> None:
    """Before Megatron is imported."""
    device.play()
    layers.play()
    casts.play()
