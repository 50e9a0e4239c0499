"""What can be varied about routing: which experts a token's update is taken from, and with what weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from unimoer.config.base import Strict
from unimoer.types import Task

SHARED = "shared"
"""The expert that belongs to no task."""
TASK_EXPERTS = tuple(task.value for task in Task)


class BaseRouterConfig(Strict):
    """Settings that every router shares, and what kind of router it is: nothing else keeps a list of kinds.

    How many experts there are, and their ranks, the adapter says.
    """

    reads_text: ClassVar[bool] = False
    """Whether its decision may differ between two texts of one task, in use."""
    named_experts: ClassVar[tuple[str, ...]] = ()
    """Experts that it takes by their names, whole and unweighed; empty for one that weighs all there are."""
    uses_pilots: ClassVar[bool] = False
    """Whether it chooses by pilots, which are fitted after training."""

    @property
    def learned(self) -> bool:
        """Whether training is to move its parameters; how far it did, a checkpoint says (`router_moved`)."""
        return False

    @property
    def told_task(self) -> bool:
        """Whether its decision depends on the task id, in use."""
        return False

    @property
    def mergeable(self) -> bool:
        """Whether a task's experts are one fixed update, which can be merged and exported."""
        return not self.reads_text

    @property
    def causal(self) -> bool:
        """Whether no token's decision depends on a later token, so that a common beginning can be computed once."""
        return not self.reads_text

    scope: Literal["layer", "projection"] = "layer"
    """One decision a decoder layer, or one for each group of projections that read the same input."""


class LearnedRouterConfig(BaseRouterConfig):
    reads_text: ClassVar[bool] = True

    granularity: Literal["sequence", "causal", "token"] = "sequence"
    """What a decision reads. `sequence`: the mean over the text's tokens, one decision a text. `causal`: the mean over
    the tokens seen so far; at the last token that is the whole text, and no token depends on a later one. `token`: the
    token alone. `sequence` gives up causality: the prefix of a text cannot be computed once and shared."""
    frozen: bool = False
    """Never train it: the start of the same router with the same seed, for comparison. Its parameters count in the size
    all the same."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits."""
    task_aware: bool = False
    """Add a learned number for each task and expert to the logits: the task is known, and the text need not give it
    away."""
    task_prior: float = Field(0.0, ge=0)
    """With `task_aware`: how far the logit of a task's own expert starts ahead, before the temperature divides it. At 0
    all experts start alike and learn alike, and little tells a router what to give to which."""
    noise_epsilon: float = Field(0.01, ge=0, lt=1)
    """While training, the router's input is multiplied by numbers from [1 - e, 1 + e], the same for all tokens of a
    text (after Switch's jitter, which draws anew for every token)."""
    logit_noise: float = Field(0.0, ge=0)
    """While training, standard deviation of Gaussian noise on the logits (Shazeer et al., 2017)."""
    expert_dropout: float = Field(0.0, ge=0, lt=1)
    """While training, probability that a text does without an expert; the others keep their sum. One always stays."""
    weight_floor: float = Field(0.0, ge=0, lt=1)
    """While training, mix this much of the uniform distribution in: an expert of weight 0 gets no gradient."""
    aux_loss_weight: float = Field(0.01, ge=0)
    """Of the load-balancing loss E sum f P over both tasks together, f being the share of weight; 1 at perfect
    balance. Not comparable with Switch's, which counts first choices."""
    z_loss_weight: float = Field(1e-3, ge=0)
    """Of the square of how far the logits' log-sum-exp exceeds that of equal logits with their mean: keeps them
    together."""

    @property
    def learned(self) -> bool:
        return not self.frozen

    @property
    def told_task(self) -> bool:
        return self.task_aware

    @property
    def causal(self) -> bool:
        return self.granularity != "sequence"


class SparsegenConfig(LearnedRouterConfig):
    """Sparsegen with a sparsity that is fixed or learned for each decision (after LD-MoLE, arXiv 2509.25684)."""

    type: Literal["sparsegen"] = "sparsegen"
    sparsity: Literal["learned"] | Annotated[float, Field(lt=1)] = "learned"
    """Lambda: 0 is sparsemax, towards 1 one expert, far below 0 all of them. `learned`: by one small network for the
    whole model, which starts dense (lambda = -1.6)."""
    sparsity_hidden: int = Field(16, ge=1)
    """Width of that network."""
    sparsity_loss_weight: float = Field(0.0, ge=0)
    """Pushes lambda up until at most `max_active` experts are active; the paper's headline results do without."""
    max_active: int = Field(2, ge=1)
    weight_floor: float = Field(0.02, ge=0, lt=1)
    """Not 0: an expert of weight 0 does not learn. Where a single one is active the router does not learn either, with
    a floor or without, but for the z-loss, which brings the logits back together."""


class TsallisConfig(LearnedRouterConfig):
    """Softmax; where its Tsallis entropy is high all experts are used, elsewhere the top of the distribution (after
    DynMoLE, arXiv 2504.00661)."""

    type: Literal["tsallis"] = "tsallis"
    q: float = Field(1.1, gt=1, le=2)
    """Of the entropy. Not below 1: the gradient of p^q is infinite at p = 0 then."""
    threshold: float = Field(0.9, ge=0, le=1)
    """Normalised entropy above which a decision uses all experts."""
    top_p: float = Field(0.75, gt=0, le=1)
    """Otherwise keep the likeliest experts whose probabilities together stay within this."""
    keep_top_k: int = Field(1, ge=1)
    """And at least so many; 2 of 3 experts would be nearly all."""
    entropy_loss_weight: float = Field(1e-2, ge=0)
    """Drives decisions to certainty."""
    aux_loss_weight: float = Field(1e-3, ge=0)


class SoftmaxConfig(LearnedRouterConfig):
    """Softmax over all experts."""

    type: Literal["softmax"] = "softmax"


class TopKConfig(LearnedRouterConfig):
    """The k likeliest experts of a softmax, their probabilities scaled to sum to 1."""

    type: Literal["topk"] = "topk"
    k: int = Field(2, ge=1)
    bias_rate: float = Field(0.0, ge=0)
    """Loss-free balancing (arXiv 2408.15664): after every step, a bias that only the choice of the k sees moves by
    this much towards equal load. 0.001 in the paper; set `aux_loss_weight` to 0 with it."""


class HierarchicalConfig(LearnedRouterConfig):
    """A token router and a task router, mixed by a learned gate of each layer (after HMoRA, ICLR 2025)."""

    type: Literal["hierarchical"] = "hierarchical"
    gate_spread: float = Field(2.0, ge=0)
    """The gate starts at sigmoid(-spread) in the first layer (tokens decide) and sigmoid(spread) in the last (the task
    decides)."""
    gate_low: float = Field(0.2, ge=0, le=1)
    """Below this only the token router counts."""
    gate_high: float = Field(0.8, ge=0, le=1)
    """Above this only the task router counts."""
    divergence_loss_weight: float = Field(0.005, ge=0)
    """Of the clamped generalised Jensen-Shannon divergence: certain decisions, balanced on average."""
    balance_goal: float = Field(0.98, gt=0, le=1)
    certainty_goal: float = Field(0.5, ge=0, lt=1)
    aux_loss_weight: float = Field(0.0, ge=0)

    @property
    def told_task(self) -> bool:
        return True


class HardConfig(BaseRouterConfig):
    """The expert of the task (Jina Embeddings v3). The task is known: this is the rival a learned router must beat."""

    named_experts: ClassVar[tuple[str, ...]] = TASK_EXPERTS

    @property
    def told_task(self) -> bool:
        return True

    type: Literal["hard"] = "hard"


class HardSharedConfig(BaseRouterConfig):
    """The expert of the task and the shared one, added up."""

    named_experts: ClassVar[tuple[str, ...]] = (*TASK_EXPERTS, SHARED)

    @property
    def told_task(self) -> bool:
        return True

    type: Literal["hard_shared"] = "hard_shared"


class SimilarityConfig(BaseRouterConfig):
    """Task experts, chosen at inference by the nearest pilot embedding instead of the task (after RouterRetriever)."""

    reads_text: ClassVar[bool] = True
    named_experts: ClassVar[tuple[str, ...]] = TASK_EXPERTS
    uses_pilots: ClassVar[bool] = True

    type: Literal["similarity"] = "similarity"
    pilot_queries: int = Field(32, ge=4)
    """Training examples of each domain and task that the pilots are made of; all of a domain that has fewer."""


class UniformConfig(BaseRouterConfig):
    """Equal weights: a null. With the default gain, one LoRA of the total rank."""

    type: Literal["uniform"] = "uniform"


class RandomFrozenConfig(LearnedRouterConfig):
    """A softmax over random logits that are never trained: a null for everything that routing is said to bring."""

    type: Literal["random_frozen"] = "random_frozen"
    spread: float = Field(1.0, gt=0)
    """Standard deviation of the logits between what it decides on: texts, or tokens with granularity `token`."""
    frozen: Literal[True] = True
    task_aware: Literal[False] = False
    task_prior: float = Field(0.0, ge=0, le=0)
    aux_loss_weight: float = Field(0.0, ge=0, le=0)
    z_loss_weight: float = Field(0.0, ge=0, le=0)


RouterConfig = Annotated[
    SparsegenConfig
    | TsallisConfig
    | SoftmaxConfig
    | TopKConfig
    | HierarchicalConfig
    | HardConfig
    | HardSharedConfig
    | SimilarityConfig
    | UniformConfig
    | RandomFrozenConfig,
    Field(discriminator="type"),
]

_MEMBERS: tuple[type[BaseRouterConfig], ...] = get_args(get_args(RouterConfig)[0])
ROUTERS = {str(member.model_fields["type"].default): member for member in _MEMBERS}
"""Every router's configuration, by its type."""
