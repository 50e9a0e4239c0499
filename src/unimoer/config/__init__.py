"""The configuration is the documentation of what can be varied; see the commented files in `configs/`."""

from unimoer.config.adapter import ALL_PROJECTIONS, AdapterConfig
from unimoer.config.arms import BUILTIN, ArmConfig
from unimoer.config.data import DataConfig, DomainConfig, NegativesConfig
from unimoer.config.experiment import CriterionConfig, ExperimentConfig
from unimoer.config.load import load_config, parse_config, parse_model
from unimoer.config.model import ModelConfig, PromptConfig, ScoreHeadConfig, TaskHeadConfig
from unimoer.config.router import ROUTERS, SHARED, RouterConfig, SimilarityConfig, SparsegenConfig, TopKConfig
from unimoer.config.training import (
    BCEConfig,
    EmbeddingTaskConfig,
    EvaluationConfig,
    GroupSoftmaxConfig,
    InfoNCEConfig,
    ListwiseConfig,
    OptimizerConfig,
    ProbeConfig,
    RankingLossConfig,
    RankNetConfig,
    RerankingTaskConfig,
    TrainingConfig,
)

__all__ = [
    "ALL_PROJECTIONS",
    "BUILTIN",
    "ROUTERS",
    "SHARED",
    "AdapterConfig",
    "ArmConfig",
    "BCEConfig",
    "CriterionConfig",
    "DataConfig",
    "DomainConfig",
    "EmbeddingTaskConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "GroupSoftmaxConfig",
    "InfoNCEConfig",
    "ListwiseConfig",
    "ModelConfig",
    "NegativesConfig",
    "OptimizerConfig",
    "ProbeConfig",
    "PromptConfig",
    "RankNetConfig",
    "RankingLossConfig",
    "RerankingTaskConfig",
    "RouterConfig",
    "ScoreHeadConfig",
    "SimilarityConfig",
    "SparsegenConfig",
    "TaskHeadConfig",
    "TopKConfig",
    "TrainingConfig",
    "load_config",
    "parse_config",
    "parse_model",
]
