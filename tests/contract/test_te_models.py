"""TransformerEngine's models."""


def test_transformer_engine_loads():
    import torch  # noqa: F401
    import transformer_engine.pytorch as te

    assert te.Linear
