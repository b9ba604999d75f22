"""Every knob of a run: its default, its meaning and its checks, a section a file.

A recipe (TOML) and `section.key=value` overrides come in; one read-only `Config` goes out. `megatron-nft config` prints
all of them. Imports no torch, ray, vllm or megatron, so that a recipe can be checked in milliseconds on any machine.
"""

from megatron_nft.config.actor import ActorConfig
from megatron_nft.config.algorithm import AlgorithmConfig
from megatron_nft.config.checkpoint import CheckpointConfig
from megatron_nft.config.cluster import ClusterConfig
from megatron_nft.config.data import DataConfig
from megatron_nft.config.errors import RecipeError
from megatron_nft.config.evaluate import EvaluateConfig
from megatron_nft.config.layout import check_layout
from megatron_nft.config.lora import LoraConfig
from megatron_nft.config.methods import CLIPPED, METHODS
from megatron_nft.config.model import ModelConfig
from megatron_nft.config.observe import ObserveConfig
from megatron_nft.config.optimizer import OptimizerConfig
from megatron_nft.config.paths import add_overrides, path_argument
from megatron_nft.config.recipe import changed_settings, changes_in_words, flat_settings, load_config, to_toml
from megatron_nft.config.rollout import RolloutConfig
from megatron_nft.config.run import RunConfig
from megatron_nft.config.schema import CUDA_ONLY, Config
from megatron_nft.config.section import Section
from megatron_nft.config.train import TrainConfig
from megatron_nft.config.verdict import OWN_GRADER, VerdictConfig, VerdictMode
from megatron_nft.config.weights import WeightsConfig

__all__ = [
    "CLIPPED",
    "CUDA_ONLY",
    "METHODS",
    "OWN_GRADER",
    "ActorConfig",
    "AlgorithmConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "LoraConfig",
    "ModelConfig",
    "ObserveConfig",
    "OptimizerConfig",
    "RecipeError",
    "RolloutConfig",
    "RunConfig",
    "Section",
    "TrainConfig",
    "VerdictConfig",
    "VerdictMode",
    "WeightsConfig",
    "add_overrides",
    "changed_settings",
    "changes_in_words",
    "check_layout",
    "flat_settings",
    "load_config",
    "path_argument",
    "to_toml",
]
