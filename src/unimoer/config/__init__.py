"""The configuration is the documentation of what can be varied; see the commented files in `configs/`."""

from unimoer.config.data import DataConfig, DomainConfig, NegativesConfig
from unimoer.config.experiment import CriterionConfig, ExperimentConfig
from unimoer.config.load import load_config, parse_config, parse_model
from unimoer.config.model import AdapterConfig, ModelConfig, PromptConfig, ScoreHeadConfig, TaskHeadConfig
from unimoer.config.training import (
    BCEConfig,
    EmbeddingTaskConfig,
    EvaluationConfig,
    GroupSoftmaxConfig,
    InfoNCEConfig,
    OptimizerConfig,
    ProbeConfig,
    RankingLossConfig,
    RerankingTaskConfig,
    TrainingConfig,
)

__all__ = [
    "AdapterConfig",
    "BCEConfig",
    "CriterionConfig",
    "DataConfig",
    "DomainConfig",
    "EmbeddingTaskConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "GroupSoftmaxConfig",
    "InfoNCEConfig",
    "ModelConfig",
    "NegativesConfig",
    "OptimizerConfig",
    "ProbeConfig",
    "PromptConfig",
    "RankingLossConfig",
    "RerankingTaskConfig",
    "ScoreHeadConfig",
    "TaskHeadConfig",
    "TrainingConfig",
    "load_config",
    "parse_config",
    "parse_model",
]
