"""The configuration is the documentation of what can be varied; see the commented files in `configs/`."""

from unimoer.config.adapter import ALL_PROJECTIONS, AdapterConfig
from unimoer.config.arms import BUILTIN, START, ArmConfig
from unimoer.config.data import DataConfig, DomainConfig, NegativesConfig
from unimoer.config.evaluation import CollectionConfig, EvaluationConfig, SuiteConfig
from unimoer.config.load import load_config, load_rag, parse_config, parse_model, parse_rag
from unimoer.config.model import ModelConfig, PromptConfig, ScoreHeadConfig, TaskHeadConfig
from unimoer.config.rag import QuestionsConfig, RagConfig
from unimoer.config.router import ROUTERS, SHARED, RouterConfig, SimilarityConfig, SparsegenConfig, TopKConfig
from unimoer.config.spec import Resources, RunSpec, SuiteSpec, TrainSpec
from unimoer.config.study import (
    BM25,
    JOINT,
    RANDOM,
    REFERENCES,
    SPECIALIST,
    UNTRAINED,
    CriterionConfig,
    StudyConfig,
    is_reference,
)
from unimoer.config.training import (
    BCEConfig,
    EmbeddingTaskConfig,
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
    "BM25",
    "BUILTIN",
    "JOINT",
    "RANDOM",
    "REFERENCES",
    "ROUTERS",
    "SHARED",
    "SPECIALIST",
    "START",
    "UNTRAINED",
    "AdapterConfig",
    "ArmConfig",
    "BCEConfig",
    "CollectionConfig",
    "CriterionConfig",
    "DataConfig",
    "DomainConfig",
    "EmbeddingTaskConfig",
    "EvaluationConfig",
    "GroupSoftmaxConfig",
    "InfoNCEConfig",
    "ListwiseConfig",
    "ModelConfig",
    "NegativesConfig",
    "OptimizerConfig",
    "ProbeConfig",
    "PromptConfig",
    "QuestionsConfig",
    "RagConfig",
    "RankNetConfig",
    "RankingLossConfig",
    "RerankingTaskConfig",
    "Resources",
    "RouterConfig",
    "RunSpec",
    "ScoreHeadConfig",
    "SimilarityConfig",
    "SparsegenConfig",
    "StudyConfig",
    "SuiteConfig",
    "SuiteSpec",
    "TaskHeadConfig",
    "TopKConfig",
    "TrainSpec",
    "TrainingConfig",
    "is_reference",
    "load_config",
    "load_rag",
    "parse_config",
    "parse_model",
    "parse_rag",
]
