"""An experiment: one YAML file (or object) that names the data, the structure and how to train it."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from multigate.balance import BALANCES, Absent, Balance, Fixed
from multigate.calibration import Method
from multigate.data.split import Split
from multigate.errors import ExperimentError, nearest
from multigate.folders import at_home
from multigate.metrics import LOSS
from multigate.model import Tower, check_reads
from multigate.nn.embed import Embedding
from multigate.options import Options, refusal
from multigate.precision import Precision
from multigate.schema import Schema
from multigate.sharing import STRUCTURES, VARIANTS, MMoE, Structure, Structures, listed
from multigate.yaml_text import dump_yaml, parse_yaml, read_yaml

Paths = str | tuple[str, ...]


def as_paths(value: Any) -> Any:
    """Paths as text; anything else as it is. Raises ``ValueError`` for a table in memory."""
    if isinstance(value, Mapping) or hasattr(value, "shape"):
        raise ValueError(
            f"a file, folder or glob is wanted, found {type(value).__name__}; a table in memory is given to what "
            "trains, as in mg.train(experiment, out, tables={'train': table})"
        )
    if isinstance(value, float) and 0 < value < 1:
        raise ValueError(
            f"a file, folder or glob is wanted, found {value}; a share of rows is split.valid or split.test"
        )
    if isinstance(value, list | tuple):
        return [as_paths(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


USUAL_DECAY = {"adamw": 0.05, "adam": 0.0}
"""Weight decay where none is set."""
USUAL_RATE, USUAL_BATCH = 2e-3, 1024
"""The learning rate where none is set, and the most rows of a batch that it is for."""
EPOCHS = 12
"""Where none are set."""
LEAST_BATCH, MOST_BATCH = 32, 4096
STEPS, STEPS_IN_ALL = 150, 1800
"""Of an epoch, that a small table's batches are made small enough for; of all epochs, those of larger batches than the
usual."""


class Optimizer(Options):
    """How weights move."""

    model_config = ConfigDict(allow_inf_nan=False)

    elsewhere: ClassVar = {"lr": "write 'learning_rate'"}

    name: Literal["adamw", "adam"] = "adamw"
    learning_rate: float | None = Field(default=None, gt=0)
    """The highest of the schedule; null is 0.002, and of batches of more than 1,024 rows that times the square root of
    how many times more."""
    weight_decay: float | None = Field(default=None, ge=0)
    """On weights and embeddings, not on biases and normalisers; null is 0.05 for adamw and 0 for adam, and what is set
    to that is null. adamw's is decoupled; adam's is added to the gradient (L2), which takes embeddings that are not
    read to zero by whole steps. That of tables not dense is decoupled, and befalls the rows of the batch alone."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """one_cycle: up over the first 30 % of the steps, down to nearly zero by a cosine; cosine: down only; constant."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the whole gradient."""
    average: float = Field(default=0.0, ge=0, lt=1)
    """Decay per step of a moving average of the weights, which is then what is evaluated and kept; 0 is none."""
    intercepts: Literal["matched", "trained"] = "matched"
    """matched: once the best weights are chosen, each task's last bias is moved so that its predictions of the training
    rows add up to what their labels do; trained: it stays where training left it."""
    embedding: Literal["auto", "dense", "lazy_adam", "rowwise_adagrad"] = "auto"
    """What moves embedding tables: dense: the optimiser of all weights; lazy_adam and rowwise_adagrad: one that touches
    only the rows of the batch, and leaves the tables out of the average; auto: dense, lazy_adam for large tables."""
    embedding_rate: float | None = Field(default=None, gt=0)
    """The highest learning rate of tables not dense; null is learning_rate, 20 times that for rowwise_adagrad."""

    def rate(self, batch: int = USUAL_BATCH) -> float:
        """The highest learning rate, of batches of so many rows."""
        return self.learning_rate or USUAL_RATE * math.sqrt(max(1.0, batch / USUAL_BATCH))

    @property
    def decay(self) -> float:
        """The weight decay, where it is left out that of the optimiser's name."""
        return USUAL_DECAY[self.name] if self.weight_decay is None else self.weight_decay

    @field_validator("weight_decay")
    @classmethod
    def _usual_is_null(cls, value: float | None, info: ValidationInfo) -> float | None:
        return None if value == USUAL_DECAY.get(info.data.get("name", "")) else value

    @model_serializer(mode="wrap")
    def _decay_in_full(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        return values | {"weight_decay": self.decay} if "weight_decay" in values else values


def as_optimizer(value: Any) -> Any:
    """The optimizer of a name or of plain values; anything else as it is. Raises ``ValueError``."""
    if isinstance(value, str):
        value = {"name": value}
    return Optimizer.model_validate(dict(value)) if isinstance(value, Mapping) else value


def as_structure(value: Any) -> Any:
    """The structure of a name or of plain values; anything else as it is. Raises ``ValueError``."""
    if isinstance(value, str):
        value = {"structure": value}
    if isinstance(value, Mapping):
        name = value.get("structure", "mmoe")
        if not isinstance(name, str) or name not in (*STRUCTURES, *VARIANTS):
            raise ValueError(f"there is no structure {name!r}; {nearest(str(name), (*STRUCTURES, *VARIANTS))}")
        if name in VARIANTS:
            variant = VARIANTS[name]
            return type(variant).model_validate(variant.to_dict() | dict(value) | {"structure": variant.name})
        return STRUCTURES[name].model_validate(dict(value))
    return value


def as_balance(value: Any) -> Any:
    """The balance of a name or of plain values; anything else as it is. Raises ``ValueError``."""
    if isinstance(value, str):
        value = {"method": value}
    if isinstance(value, Mapping):
        name = value.get("method", "fixed")
        if not isinstance(name, str) or name not in BALANCES:
            raise ValueError(f"there is no balance {name!r}; {nearest(str(name), BALANCES)}")
        return BALANCES[name].model_validate(dict(value))
    return value


with warnings.catch_warnings():
    # pydantic warns that the field shadows its own deprecated BaseModel.schema
    warnings.simplefilter("ignore", UserWarning)

    class Experiment(Options):
        """Everything one training needs. Every field but ``schema`` and ``train`` has a default."""

        elsewhere: ClassVar = {
            "lr": "write optimizer.learning_rate",
            "device": "it is said to the command that trains, as --device, or to the function",
            "out": "it is said to the command that trains, as --out, or to the function",
            "early_stopping": "write 'patience'",
            "weights": "write the 'weight' of each task, in the schema",
        }

        schema: Schema  # type: ignore[assignment]
        train: Paths = ""
        """A file, folder or glob (or a list of them), or empty where a table is passed from Python."""
        valid: Paths | None = None
        test: Paths | None = None
        split: Split = Split()
        """Where valid (or test) rows come from when they have no file of their own."""

        sharing: SerializeAsAny[Structure] = MMoE()
        tower: Tower = Tower()
        embedding: Embedding = Embedding()
        balance: SerializeAsAny[Balance] = Fixed()
        optimizer: Optimizer = Optimizer()

        epochs: int = Field(default=EPOCHS, ge=1)
        batch_size: int | None = Field(default=None, ge=1)
        """Rows of a step; null is a power of two from 32 to 4096, for 150 steps an epoch, and 1800 in all of more than
        1024."""
        precision: Precision = "auto"
        """Of matmuls in training; auto is bfloat16 where the device multiplies it natively. ``load`` has its own."""
        seed: int = Field(default=0, ge=0, le=2**64 - 1)
        monitor: str = "mean"
        """``<task>/<metric>`` that chooses the best weights on validation rows, or the mean of the tasks' main ones."""
        patience: int | None = Field(default=3, ge=1)
        """Evaluations without a better one after which training stops; null never stops early."""
        valid_rows: int = Field(default=500_000, ge=1)
        """At most so many validation rows, evenly spread, are looked at after an epoch."""
        recalibrate: Method = "none"
        """A curve fitted to the validation rows for each binary task once training is over, ``platt`` or ``isotonic``;
        regressions through ``log1p`` are made true in total."""
        warm_start: str | None = None
        """A run or bundle to go on from: its encoder, grown by the ids that are new, and its weights."""

        @field_validator("train", "valid", "test", "warm_start", mode="before")
        @classmethod
        def _paths_as_text(cls, value: Any) -> Any:
            return as_paths(value)

        @field_validator("optimizer", mode="before")
        @classmethod
        def _optimizer_by_name(cls, value: Any) -> Any:
            return {"name": value} if isinstance(value, str) else value

        @field_validator("sharing", mode="before")
        @classmethod
        def _structure_by_name(cls, value: Any) -> Any:
            return as_structure(value)

        @field_validator("balance", mode="before")
        @classmethod
        def _balance_by_name(cls, value: Any) -> Any:
            return as_balance(value)

        @field_validator("tower", mode="before")
        @classmethod
        def _tower_by_widths(cls, value: Any) -> Any:
            return {"hidden": value} if isinstance(value, list | tuple) else value

        @model_validator(mode="after")
        def _structure_fits(self) -> "Experiment":
            self.sharing.check(self.schema.task_names)
            if all(task.weight == 0 for task in self.schema.tasks):
                raise ValueError("every task has weight 0, so that nothing would be learnt; set that of one above 0")
            check_reads(self.sharing, self.embedding, [one.name for one in self.schema.features if one.use == "gate"])
            return self

        @field_validator("monitor")
        @classmethod
        def _monitor_form(cls, value: str, info: ValidationInfo) -> str:
            if value != "mean" and "/" not in value:
                raise ValueError(f"'monitor' wants 'mean' or '<task>/<metric>', such as 'click/auc', not {value!r}")
            task, _, metric = value.partition("/")
            if metric == "calibration":  # a metric like the others, but for its direction
                tasks = info.data["schema"].tasks if "schema" in info.data else ()
                kind = next((one.kind for one in tasks if one.name == task), "binary")
                raise ValueError(
                    f"{value!r} cannot be monitored, for calibration is best at 1, neither higher nor lower; "
                    f"take '{task}/{LOSS[kind]}', which suffers where it is off"
                )
            return value

        @property
        def corrects(self) -> bool:
            """Whether the bundle of a training has curves, which its validation metrics are from before."""
            fitted = self.recalibrate != "none" and self._takes_curves
            return fitted or any(task.negatives_kept < 1 for task in self.schema.tasks)

        @property
        def _takes_curves(self) -> bool:
            return any(
                task.kind == "binary" or (task.kind, task.transform) == ("regression", "log1p")
                for task in self.schema.tasks
            )

        def idle(self) -> Mapping[str, str]:
            why = "there are curves for binary tasks and regressions through log1p alone"
            return {} if self._takes_curves else {"recalibrate": why}

        def batch(self, rows: int) -> int:
            """The rows of a step, of so many training rows."""
            return self.batch_size or _batch(rows // STEPS, rows * self.epochs // STEPS_IN_ALL)

        def settled(self, rows: int) -> "Experiment":
            """With what null means for so many training rows: their batches and the learning rate of these."""
            size = self.batch(rows)
            return self.with_(batch_size=size, optimizer=self.optimizer.with_(learning_rate=self.optimizer.rate(size)))

        def to_yaml(self, *, full: bool = False) -> str:
            """The experiment as a person would write it, defaults omitted, or ``full`` with every one spelled out."""
            return dump_yaml(self.to_dict(full=full))


def _batch(for_an_epoch: int, for_all: int) -> int:
    """The largest power of two in bounds that leaves steps enough for an epoch and, above the usual, for all."""
    most = min(for_an_epoch, max(for_all, USUAL_BATCH), MOST_BATCH)
    return max(LEAST_BATCH, 1 << max(most, 1).bit_length() - 1)


def read_experiment(path: str | Path, changes: str | Sequence[str] = ()) -> Experiment:
    """The experiment in a YAML file, with ``key.inner=value`` changes applied on top.

    Raises ``ExperimentError`` naming the file and key for anything that cannot be.
    """
    data = read_yaml(at_home(path))
    if data is None:
        raise ExperimentError(f"{path} is empty; multigate init TABLE --set tasks=... drafts an experiment for a table")
    if not isinstance(data, dict):
        raise ExperimentError(
            f"{path} should hold 'schema:', 'train:' and so on; found {type(data).__name__}; see multigate init"
        )
    return make_experiment(data, changes, name=str(path))


def as_experiment(given: Any) -> Experiment:
    """An experiment as it is. Raises ``ExperimentError`` where something else is given, such as the path of one."""
    if isinstance(given, Experiment):
        return given
    raise ExperimentError(
        f"an experiment is wanted, found {type(given).__name__}; read one from its file by "
        "mg.read_experiment(path), or make one by mg.Experiment(...)"
    )


def make_experiment(data: dict[str, Any], changes: str | Sequence[str] = (), *, name: str = "experiment") -> Experiment:
    """An experiment from plain values, with ``key.inner=value`` changes; raises ``ExperimentError``."""
    try:
        return Experiment.model_validate(changed(data, changes))
    except ValidationError as error:
        raise ExperimentError(refusal(name, error)) from None


def with_structures(data: Mapping[str, Any], structures: Structures) -> dict[str, Any]:
    """Plain values whose ``sharing``, where it is of one of these structures of somebody's own, is its options."""
    sharing = data.get("sharing")
    tag = sharing.get("structure") if isinstance(sharing, Mapping) else None
    own = next((kind for kind in listed(structures) if kind.model_fields["structure"].default == tag), None)
    return dict(data) if own is None else {**data, "sharing": own.model_validate(sharing)}


def with_balance(data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of what was trained, whose balance may be one of somebody's own."""
    balance = data.get("balance")
    method = balance.get("method") if isinstance(balance, Mapping) else None
    own = isinstance(method, str) and method not in BALANCES
    return {**data, "balance": Absent.model_validate(balance)} if own else dict(data)


def unknown_structure(name: str, data: Mapping[str, Any]) -> str | None:
    """What is said where ``with_structures`` has left a structure in plain values that is not built in."""
    sharing = data.get("sharing")
    if not sharing or isinstance(sharing, Structure) or sharing.get("structure") in STRUCTURES:
        return None
    tag = sharing.get("structure")
    return f"{name} uses structure {tag!r}, which is not built in; pass its options class: structures=[Mine]"


TYPES = "schema.types."
"""What stands before the name of a column whose type is set."""
SHORT = {"sharing": "structure", "balance": "method", "optimizer": "name"}
"""What a block is told by, where it stands for the whole of it."""
KINDS = ("schema.features.", "schema.tasks.")
"""What stands before the name of a feature or task, whose kind may stand for the whole of it."""


def changed(data: Mapping[str, Any], changes: str | Sequence[str]) -> dict[str, Any]:
    """Values with ``key.inner=value`` settings applied, which are read as YAML; options among them become plain where
    a key of theirs is set, those of a structure of one's own stay its.

    Raises ``ExperimentError`` for a change of another form, and for one within something that has no keys.
    """
    result: dict[str, Any] = dict(data)
    for change in [changes] if isinstance(changes, str) else changes:
        key, found, text = change.partition("=")
        if not found or not key:
            raise ExperimentError(f"--set wants key=value, such as sharing.experts=16; found {change!r}")
        *path, last = key.split(".")
        if key.startswith(TYPES):  # the name of a column, which may have dots
            path, last = TYPES.rstrip(".").split("."), key.removeprefix(TYPES)
        at = result
        for part in path:
            inner = at.get(part) or {}
            if isinstance(inner, Options):  # made in Python
                inner = inner.to_dict()
            if isinstance(inner, str) and at is result and part in SHORT:  # sharing: mmoe, then sharing.experts=16
                inner = {SHORT[part]: inner}
            if isinstance(inner, str) and key.startswith(KINDS):  # {age: number}, then schema.features.age.dim=8
                inner = {"kind": inner}
            if isinstance(inner, list) and part == "tower":  # tower: [32], then tower.dropout=0.1
                inner = {"hidden": inner}
            if isinstance(inner, list):
                raise ExperimentError(
                    f"--set {change}: {part!r} is a list; set it as a whole, or edit the experiment file"
                )
            if not isinstance(inner, Mapping):
                raise ExperimentError(f"--set {change}: {part!r} has no keys of its own")
            at[part] = dict(inner)
            at = at[part]
        try:
            at[last] = parse_yaml(text, change)
        except ExperimentError:  # *.parquet and the like
            at[last] = text
    return with_structures(result, [type(one) for one in data.values() if isinstance(one, Structure)])
