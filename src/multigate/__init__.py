"""Multi-task learning on tables: share, train, compare, explain and serve."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multigate.analysis.compare import compare as compare
    from multigate.analysis.inspection import inspect_model as inspect_model
    from multigate.analysis.relate import open_relations as open_relations
    from multigate.analysis.relate import relate as relate
    from multigate.analysis.subject import find_subject as find_subject
    from multigate.analysis.tune import tune as tune
    from multigate.bundle import Bundle as Bundle
    from multigate.bundle import load as load
    from multigate.data.infer import infer_schema as infer_schema
    from multigate.errors import MultigateError as MultigateError
    from multigate.estimator import MultiTaskEstimator as MultiTaskEstimator
    from multigate.experiment import Experiment as Experiment
    from multigate.experiment import read_experiment as read_experiment
    from multigate.report.card import write_card as write_card
    from multigate.report.related import write_relations as write_relations
    from multigate.report.tuned import write_tuning as write_tuning
    from multigate.report.write import write_report as write_report
    from multigate.run import Run as Run
    from multigate.run import open_run as open_run
    from multigate.schema import Bag as Bag
    from multigate.schema import Category as Category
    from multigate.schema import Hashed as Hashed
    from multigate.schema import Number as Number
    from multigate.schema import Output as Output
    from multigate.schema import Schema as Schema
    from multigate.schema import Task as Task
    from multigate.schema import Time as Time
    from multigate.schema import Vector as Vector
    from multigate.score import score_part as score_part
    from multigate.score import score_table as score_table
    from multigate.score import write_predictions as write_predictions
    from multigate.sharing import AITM as AITM
    from multigate.sharing import CGC as CGC
    from multigate.sharing import PLE as PLE
    from multigate.sharing import SNR as SNR
    from multigate.sharing import AdaTT as AdaTT
    from multigate.sharing import CrossStitch as CrossStitch
    from multigate.sharing import HoME as HoME
    from multigate.sharing import MMoE as MMoE
    from multigate.sharing import OMoE as OMoE
    from multigate.sharing import SharedBottom as SharedBottom
    from multigate.sharing import SingleTask as SingleTask
    from multigate.sharing import Soft as Soft
    from multigate.sharing import StackedMMoE as StackedMMoE
    from multigate.sharing import TensorFactor as TensorFactor
    from multigate.tables import show as show
    from multigate.training.recalibrate import recalibrate as recalibrate
    from multigate.training.train import train as train

_HOMES = {
    "compare": "analysis.compare",
    "inspect_model": "analysis.inspection",
    "open_relations": "analysis.relate",
    "relate": "analysis.relate",
    "find_subject": "analysis.subject",
    "tune": "analysis.tune",
    "Bundle": "bundle",
    "load": "bundle",
    "infer_schema": "data.infer",
    "MultigateError": "errors",
    "MultiTaskEstimator": "estimator",
    "Experiment": "experiment",
    "read_experiment": "experiment",
    "write_card": "report.card",
    "write_relations": "report.related",
    "write_tuning": "report.tuned",
    "write_report": "report.write",
    "Run": "run",
    "open_run": "run",
    "Bag": "schema",
    "Category": "schema",
    "Hashed": "schema",
    "Number": "schema",
    "Output": "schema",
    "Schema": "schema",
    "Task": "schema",
    "Time": "schema",
    "Vector": "schema",
    "score_part": "score",
    "score_table": "score",
    "write_predictions": "score",
    "AdaTT": "sharing",
    "AITM": "sharing",
    "CGC": "sharing",
    "CrossStitch": "sharing",
    "HoME": "sharing",
    "PLE": "sharing",
    "SNR": "sharing",
    "Soft": "sharing",
    "StackedMMoE": "sharing",
    "TensorFactor": "sharing",
    "MMoE": "sharing",
    "OMoE": "sharing",
    "SharedBottom": "sharing",
    "SingleTask": "sharing",
    "show": "tables",
    "recalibrate": "training.recalibrate",
    "train": "training.train",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605 (the names are written once, above)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that ``import multigate`` is quick."""
    if name not in _HOMES:
        from multigate.errors import nearest

        raise AttributeError(f"module 'multigate' has no attribute {name!r}; {nearest(name, _HOMES)}")
    return getattr(import_module(f"multigate.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
