"""How a config.json says its rotary positions: rope_theta and rope_scaling of transformers 4, rope_parameters of 5.

Both generations come in, one `Rope` goes out, read as transformers 5 reads them where they differ: a rope_scaling that
isn't empty stands in for rope_parameters as a whole, and a theta among the parameters goes before one beside them.
What transformers, vLLM and Megatron-Core all compute alike is taken: none, linear, yarn, and llama3 with its usual
constants.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_nft.families.config_json import Keys
from megatron_nft.families.family import HFConfig, ModelFolderError, Yarn

SUPPORTED = "default, linear, llama3, yarn"
WHY_NOT = {
    "dynamic": "; vLLM stretches it from the first token on, transformers only beyond max_position_embeddings",
}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The rope scaling that Megatron-Core knows (RotaryEmbedding._apply_scaling), less its factor."""
THETA = 10000.0


@dataclass(frozen=True, kw_only=True)
class Rope:
    """At most one of the three is there."""

    theta: float
    llama3_factor: float | None = None
    linear_factor: float | None = None
    yarn: Yarn | None = None


def read_rope(raw: dict[str, Any], file: Path, max_position_embeddings: int) -> Rope:
    """
    Raises:
        ModelFolderError: it is of a kind that is not supported, or a number is missing or wrong.
    """
    within, parameters = next(
        ((key, raw[key]) for key in ("rope_scaling", "rope_parameters") if raw.get(key)), ("rope_parameters", {})
    )
    if not isinstance(parameters, dict):
        raise ModelFolderError(f"{file}: {within} = {parameters!r} is not an object; write null for none")
    for key, value in parameters.items():
        if isinstance(value, dict):
            raise ModelFolderError(f"{file}: {within}.{key}: positions that differ by layer are not supported")
    keys = Keys(parameters, file, {"rope_theta": raw.get("rope_theta", THETA)}, f"{within}.")
    theta, partial = keys.number("rope_theta"), parameters.get("partial_rotary_factor")
    if partial is not None and partial != 1:
        keys.refuse("partial_rotary_factor", partial, "is not supported", "heads are rotated whole")
    if parameters.get("mrope_section"):
        keys.refuse("mrope_section", parameters["mrope_section"], "is not supported", "take a model of text alone")
    if theta <= 1:
        keys.refuse("rope_theta", theta, "is no base of wavelengths: it must be more than 1")
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))  # "type": the key of older configs
    if rope_type == "default":
        return Rope(theta=theta)
    if rope_type not in ("linear", "llama3", "yarn"):
        why = WHY_NOT.get(rope_type, "") if isinstance(rope_type, str) else ""
        raise ModelFolderError(f"{file}: rope type {rope_type!r} is not supported{why}; supported: {SUPPORTED}")
    factor = keys.number("factor")
    if factor < 1:
        keys.refuse("factor", factor, "is less than 1")
    if rope_type == "linear":
        return Rope(theta=theta, linear_factor=factor)
    # A key beside the parameters goes before theirs; without either it is the model's length.
    original = {"original_max_position_embeddings": max_position_embeddings} | parameters
    if "original_max_position_embeddings" in raw:
        original["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    keys = Keys(original, file, {}, f"{within}.")
    if rope_type == "llama3":
        _check_llama3(keys)
        return Rope(theta=theta, llama3_factor=factor)
    return Rope(theta=theta, yarn=_read_yarn(keys, factor))


def rope_parameters(hf: HFConfig) -> dict[str, Any]:
    """A model's rope in the words of transformers 5, with every number written out: for who would read it otherwise."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": hf.rope_theta}
    if hf.rope_linear_factor is not None:
        parameters |= {"rope_type": "linear", "factor": hf.rope_linear_factor}
    if hf.rope_scaling_factor is not None:
        parameters |= {"rope_type": "llama3", "factor": hf.rope_scaling_factor, **LLAMA3}
    return parameters if hf.yarn is None else parameters | {"rope_type": "yarn"} | asdict(hf.yarn)


def _check_llama3(keys: Keys) -> None:
    for name, known in LLAMA3.items():
        if (value := keys.number(name)) != known:
            keys.refuse(name, value, "is not supported", f"Megatron-Core knows {known}")


def _read_yarn(keys: Keys, factor: float) -> Yarn:
    """The scale of cosines and sines is worked out as transformers and vLLM do."""

    def optional(name: str) -> float | None:
        value = keys.get(name)
        if value is not None and (type(value) not in (int, float) or not 0 <= value < math.inf):
            keys.refuse(name, value, "is not a number from 0 on")
        return value

    def grown(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    attention_factor, mscale, all_dim = (optional(n) for n in ("attention_factor", "mscale", "mscale_all_dim"))
    if attention_factor is None:
        attention_factor = grown(mscale) / grown(all_dim) if mscale and all_dim else grown(1.0)
    if attention_factor == 0:
        keys.refuse("attention_factor", 0, "leaves no attention")
    if attention_factor != 1 and factor <= 1:
        keys.refuse("attention_factor", attention_factor, "at factor 1 is not supported", "leave one of them out")
    fast, slow = (optional("beta_fast") or 32.0), (optional("beta_slow") or 1.0)
    if fast < slow:
        keys.refuse("beta_fast", fast, f"is less than beta_slow = {slow}")
    return Yarn(
        factor=factor,
        original_max_position_embeddings=keys.count("original_max_position_embeddings"),
        attention_factor=float(attention_factor),
        beta_fast=float(fast),
        beta_slow=float(slow),
        truncate=keys.flag("truncate") if "truncate" in keys.raw else True,
    )
