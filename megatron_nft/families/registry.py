"""Which families there are: every file of this folder that has a FAMILY. Found by model_type, never listed by hand."""

from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules

import megatron_nft.families
from megatron_nft.families.family import Family, HFConfig
from megatron_nft.families.rules import Table


def families() -> dict[str, Family]:
    """model_type -> family."""
    modules = [import_module(f"megatron_nft.families.{m.name}") for m in iter_modules(megatron_nft.families.__path__)]
    return {module.FAMILY.model_type: module.FAMILY for module in modules if hasattr(module, "FAMILY")}


def family_of(hf: HFConfig) -> Family:
    """A model's family."""
    return families()[hf.model_type]


@lru_cache(maxsize=64)
def table_of(hf: HFConfig) -> Table:
    """A model's rules."""
    return Table(hf.model_type, family_of(hf).rules(hf))
