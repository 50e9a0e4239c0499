"""One model for every file that is written: the only thing that passes between training, studies and reports."""

from unimoer.schema.base import Cell, Interval, Record, read_lines, read_record, write_record
from unimoer.schema.decision import Decision, TaskDecision
from unimoer.schema.plan import Declaration, Plan
from unimoer.schema.rag import RagAnswer, RagCosts, RagPlan, RagQuestion, RagResults
from unimoer.schema.results import Results
from unimoer.schema.run import ConflictLine, Environment, EvaluationSummary, RoutingLine, RunStatus, TrainingLine

__all__ = [
    "Cell",
    "ConflictLine",
    "Decision",
    "Declaration",
    "Environment",
    "EvaluationSummary",
    "Interval",
    "Plan",
    "RagAnswer",
    "RagCosts",
    "RagPlan",
    "RagQuestion",
    "RagResults",
    "Record",
    "Results",
    "RoutingLine",
    "RunStatus",
    "TaskDecision",
    "TrainingLine",
    "read_lines",
    "read_record",
    "write_record",
]
