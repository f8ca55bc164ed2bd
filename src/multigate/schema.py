"""What the columns of a table mean: features that models read, tasks they predict."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from multigate.errors import ExperimentError, SettingError, nearest
from multigate.expression import Expression
from multigate.options import Options

Value = bool | int | float | str
USES, BIAS = ("shared", "gate"), "bias:"


class Named(Options):
    """Options with a name that may be given first: ``Task("click")``."""

    name: str = Field(min_length=1, kw_only=False)

    def __init__(self, *name: str, **options: Any) -> None:
        if len(name) > 1:
            told = f"say which field {name[1]!r} is, such as kind={name[1]!r}"
            raise SettingError(f"{type(self).__name__}: only the name may be given without its field; {told}")
        super().__init__(**dict(zip(("name",), name, strict=False)), **options)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # no work for pydantic, see Options


class _Feature(Named):
    column: str = ""
    """Source column; the feature's own name if empty."""
    use: str = "shared"
    """Who reads it: ``shared``, every task; ``gate``, only the gates of a structure that has some; ``bias:<task>``, a
    shallow tower added to that task's logit alone, in training alone: to predict, it is unknown."""

    @field_validator("use")
    @classmethod
    def _use_form(cls, use: str) -> str:
        if use not in USES and not use.startswith(BIAS):
            raise ValueError(f"'use' wants shared, gate or bias:<task>, not {use!r}; {nearest(use, (*USES, BIAS))}")
        return use

    @property
    def source(self) -> str:
        return self.column or self.name

    @property
    def biased(self) -> str | None:
        """The task that ``bias:<task>`` names."""
        return self.use.removeprefix(BIAS) if self.use.startswith(BIAS) else None


class Number(_Feature):
    """A quantity. Standardised; missing values get an indicator of their own."""

    kind: Literal["number"] = "number"
    transform: Literal["standard", "log", "quantile"] = "standard"
    """Before standardising: nothing, sign(x) log(1 + |x|), or the normal score of the value's rank."""
    embedding: Literal["auto", "none", "bins", "piecewise", "periodic"] = "auto"
    """What stands beside the standardised value: nothing, an embedding of its quantile bin, a piecewise-linear
    or a periodic embedding (Gorishniy et al. 2022). ``auto`` is ``bins`` for a number of at most ``values`` different
    values that training saw a hundred times each on average, ``piecewise`` for others."""
    bins: int = Field(default=48, ge=2, le=1024)
    values: int = Field(default=256, ge=0, le=100_000)
    """With ``bins``, a number that takes at most so many values (but more than there are bins) also embeds the value
    itself where training saw it at least five times; 0 for never."""
    dim: int | None = Field(default=None, ge=1)

    def idle(self) -> Mapping[str, str]:
        unread = {"none": ("bins", "values", "dim"), "piecewise": ("values",), "periodic": ("bins", "values")}
        return dict.fromkeys(unread.get(self.embedding, ()), f"embedding {self.embedding!r} does not read it")


class Vector(_Feature):
    """A fixed-size list of quantities, such as a pre-trained embedding; each is standardised."""

    kind: Literal["vector"] = "vector"
    size: int = Field(ge=1)


class Time(_Feature):
    """A point in time, read as the categories hour of day and day of week."""

    kind: Literal["time"] = "time"
    parts: tuple[Literal["hour", "weekday", "day", "month"], ...] = Field(default=("hour", "weekday"), min_length=1)
    dim: int | None = Field(default=None, ge=1)


class Category(_Feature):
    """One of a set of values. Id 0 is any value unseen in training, 1 is missing, then the vocabulary."""

    kind: Literal["category"] = "category"
    min_count: int = Field(default=1, ge=1)
    max_size: int = Field(default=1_000_000, ge=1)
    dim: int | None = Field(default=None, ge=1)
    table: str = ""
    """Features naming the same table share one vocabulary and one embedding table."""


class Hashed(_Feature):
    """One of a very large or open set of values, hashed into ``buckets`` ids (0 unused, 1 missing, then buckets)."""

    kind: Literal["hashed"] = "hashed"
    buckets: int = Field(ge=2)
    dim: int | None = Field(default=None, ge=1)
    table: str = ""


class Bag(_Feature):
    """Any number of values in a cell: an Arrow list, or a string such as ``"39,12"``; read as their mean embedding."""

    kind: Literal["bag"] = "bag"
    separator: str = Field(default=",", min_length=1)
    buckets: int | None = Field(default=None, ge=2)
    """Hash the values into so many ids instead of keeping a vocabulary."""
    min_count: int = Field(default=1, ge=1)
    max_size: int = Field(default=1_000_000, ge=1)
    dim: int | None = Field(default=None, ge=1)
    table: str = ""

    def idle(self) -> Mapping[str, str]:
        return dict.fromkeys(("min_count", "max_size"), "items are hashed into 'buckets'") if self.buckets else {}


Feature = Annotated[Number | Vector | Time | Category | Hashed | Bag, Field(discriminator="kind")]


class Task(Named):
    """A label to predict."""

    column: str = ""
    kind: Literal["binary", "regression", "multiclass"] = "binary"
    positive: Value | tuple[Value, ...] | None = None
    """The value, or values, that mean 1 where a binary label is not 0/1 or true/false already."""
    classes: tuple[str, ...] = ()
    """Values of a multiclass label, as text; taken from the training rows if empty."""
    transform: Literal["none", "standard", "log1p"] = "standard"
    """What a regression target is fitted through; predictions come back in the label's own unit. ``log1p``
    wants labels above -1 and standardises after the logarithm."""
    given: str | None = None
    """A binary parent task: the tower predicts p(this | parent), the output is p(this) = p(this | parent) p(parent)."""
    where: str | None = None
    """A binary task: loss and metrics count only rows where it is 1."""
    risk: Literal["joint", "ips", "dr"] = "joint"
    """Of a task with a ``given`` parent: the loss of p(this) on all rows (ESMM), and besides it a counterfactual risk
    of p(this | parent) over all rows, by inverse propensities or doubly robust (ESCM2; Wang et al. 2022)."""
    risk_weight: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Of the counterfactual risk, in the task's loss."""
    risk_clip: float = Field(default=0.1, gt=0, le=1)
    """p(parent) counts as no less than this share of its mean: no row weighs more than 1 / clip average ones."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    weight_factor: float = Field(default=1.0, gt=0, le=10)
    """What ``weight`` is multiplied by after each epoch (Tang et al. 2020, Eq. 10)."""
    sample_weight: str | None = None
    """A column with the weight of each row's label."""
    negatives_kept: float = Field(default=1.0, gt=0, le=1)
    """Share of the rows with label 0 (under a parent of 1, where there is a ``given`` one) that the training and
    validation tables kept; predictions are corrected for the rest."""
    auxiliary: bool = False
    """Trained, but not counted when the best weights are chosen."""

    @field_validator("classes", mode="before")
    @classmethod
    def _as_text(cls, classes: Any) -> Any:
        return [_cell_text(one) for one in classes] if isinstance(classes, list | tuple) else classes

    def idle(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        if self.risk == "joint":
            found |= dict.fromkeys(("risk_weight", "risk_clip"), "no 'risk' is set, ips or dr")
        if self.kind != "regression":
            found["transform"] = f"it is of regressions, this task is {self.kind}"
        if self.kind != "multiclass":
            found["classes"] = f"they are of multiclass tasks, this one is {self.kind}"
        return found

    @property
    def source(self) -> str:
        return self.column or self.name

    def numbers(self) -> tuple[str, ...]:
        """Names of its predictions that are numbers, those of undeclared classes aside."""
        if self.kind == "multiclass":
            return tuple(f"{self.name}={one}" for one in self.classes)
        return (self.name,) if self.given is None else (self.name, f"{self.name}|{self.given}")

    @model_validator(mode="after")
    def _fits_together(self) -> "Task":
        if self.given is not None and self.kind != "binary":
            raise ValueError(
                f"task {self.name!r}: 'given' joins two binary tasks, this one is {self.kind}; use 'where' instead"
            )
        if self.risk != "joint" and self.given is None:
            raise ValueError(
                f"task {self.name!r}: risk {self.risk!r} is of p(task | parent) and wants a 'given' parent; name it, "
                "or leave 'risk' out"
            )
        if self.positive is not None and self.kind != "binary":
            raise ValueError(f"task {self.name!r}: 'positive' is for binary tasks, this one is {self.kind}")
        if self.negatives_kept < 1 and self.kind != "binary":
            raise ValueError(f"task {self.name!r}: 'negatives_kept' is for binary tasks, this one is {self.kind}")
        if self.kind == "binary" and self.sample_weight == self.source:
            raise ValueError(
                f"task {self.name!r}: column {self.source!r} is its label and its 'sample_weight', so that no row of 0 "
                "would count; name a column of weights, or leave it out"
            )
        twice = _twice(self.classes)
        if twice:
            raise ValueError(f"task {self.name!r}: class {twice[0]!r} is named twice; name each class once")
        if "|" in self.name or "/" in self.name:
            raise ValueError(
                f"task {self.name!r}: a name may hold neither '|' nor '/'; choose another and give this one as 'column'"
            )
        return self


def _cell_text(value: Any) -> str:
    """A class as the text that a cell of it has: 1.0 is 1, True is true."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class Output(Named):
    """A number made of predictions: the expected watch time ``click * watch``, the expected revenue ``buy * price``, or
    a score to rank by."""

    expression: str = Field(min_length=1)
    """Of predictions by their names (a multiclass task's are ``'size=small'``), of features of kind ``number`` as the
    row has them, and of outputs before it; see ``Expression``."""

    @model_validator(mode="after")
    def _reads(self) -> "Output":
        if any(one in self.name for one in "|/="):
            raise ValueError(f"output {self.name!r}: a name may hold none of '|', '/' and '='; choose another")
        try:
            self.compiled()
        except ValueError as error:
            raise ValueError(f"output {self.name!r}: {error}") from None
        return self

    def compiled(self) -> Expression:
        """What computes it."""
        return Expression(self.expression)


def _twice(names: Iterable[str]) -> list[str]:
    """Those that are there more than once, sorted."""
    return sorted(name for name, many in Counter(names).items() if many > 1)


_Role = Literal["key", "name", "bag", "number", "truth", "other"]
"""What a column is there for: to be carried along, to be known by its text, as items, as a quantity, as a label of 0
and 1 or of truth values, or for anything else that reads it by its type."""
_FEATURE_ROLES: Mapping[str, _Role] = {
    "category": "name", "hashed": "name", "bag": "bag", "number": "number", "time": "number", "vector": "other",
}  # fmt: skip


def _label_role(task: Task) -> _Role:
    if task.kind == "multiclass":
        return "number" if _are_exact(task.classes) else "other"
    return "truth" if task.kind == "binary" and task.positive is None else "number"


def _are_exact(classes: tuple[str, ...]) -> bool:
    """Whether they are declared and none is a whole number that a float64 does not hold."""
    return bool(classes) and all(len(one) <= 15 for one in classes)


def _later_type(kind: str, roles: set[_Role]) -> str:
    """What a column of a type that is there for all of these is read as once a model is there."""
    whole, decimal = kind.startswith(("int", "uint")), kind.startswith("decimal")
    if not roles or "key" in roles:
        return kind
    if roles == {"name"}:
        return "string"
    if roles == {"truth"} and (whole or decimal or kind == "bool"):
        return "string"
    if roles & {"number", "truth"} and (whole or (decimal and "name" not in roles)):
        return "double"
    if kind.startswith("date") and "bag" not in roles:  # the text of items is that of the type
        return "timestamp[us]"
    return kind


class Risk(NamedTuple):
    """A counterfactual risk in a task's loss, with the places of the task and of its parent among the tasks."""

    task: int
    parent: int
    kind: Literal["ips", "dr"]
    weight: float
    clip: float


class Schema(Options):
    """Features and tasks, and the columns that are neither but are carried along."""

    features: tuple[Feature, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    outputs: tuple[Output, ...] = ()
    """Numbers made of predictions, which stand beside them."""
    keys: tuple[str, ...] = ()
    """Columns copied through to predictions, never read by a model."""
    time: str | None = None
    """Column that orders the rows; splits go by it."""
    group: str | None = None
    """Column whose rows belong together (a user): GAUC is taken over it, whole groups are drawn for intervals, and a
    split by group lets no value fall into two parts."""
    funnel: Literal["strict", "loose"] = "strict"
    """Whether more than 0.1 % of a child's labels of 1 may stand where their ``given`` parent is 0."""
    types: dict[str, str] = Field(default_factory=dict)
    """Arrow types of the columns, frozen when the schema was written (CSV files have none of their own)."""

    @field_validator("features", "tasks", mode="before")
    @classmethod
    def _kinds_by_name(cls, given: Any) -> Any:
        if isinstance(given, Named):
            return (given,)
        if not isinstance(given, Mapping):
            return given
        return [
            {"name": name} | (dict(one) if isinstance(one, Mapping) else {"kind": one}) for name, one in given.items()
        ]

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks_by_name(cls, tasks: Any) -> Any:
        listed = [tasks] if isinstance(tasks, str) else tasks
        if not isinstance(listed, list | tuple):
            return tasks
        return [{"name": one} if isinstance(one, str) else one for one in listed]

    @field_validator("outputs", mode="before")
    @classmethod
    def _one_output(cls, outputs: Any) -> Any:
        return (outputs,) if isinstance(outputs, Named) else outputs

    @field_validator("keys", mode="before")
    @classmethod
    def _one_key(cls, keys: Any) -> Any:
        return (keys,) if isinstance(keys, str) else keys

    @model_validator(mode="after")
    def _fits_together(self) -> "Schema":
        predicted = (*self.tasks, *self.outputs)
        for what, held in (("features", self.features), ("tasks", self.tasks), ("tasks or outputs", predicted)):
            twice = _twice(one.name for one in held)
            if twice:
                raise ValueError(f"two {what} are named {twice[0]!r}; give each a name of its own")
        twice = _twice(self.keys)
        if twice:
            raise ValueError(f"key {twice[0]!r} is named twice among the keys; name each column once")
        self._check_features({task.source: task.name for task in self.tasks})
        for one in predicted:
            if one.name in self.keys:
                kind = "a task" if isinstance(one, Task) else "an output"
                raise ValueError(
                    f"key {one.name!r} has the name of {kind}, whose predictions stand in a column of that name; "
                    "leave it out of the keys, or give that another name"
                )
        self._check_parents()
        self.order()
        self._check_outputs()
        return self

    def _check_features(self, labels: Mapping[str, str]) -> None:
        """Raise ``ValueError`` where a feature is a label (a column, and its task), or ``use`` leaves it to nobody."""
        for feature in self.features:
            if feature.source in labels:
                raise ValueError(
                    f"column {feature.source!r} is the label of task {labels[feature.source]!r} "
                    f"and also feature {feature.name!r}; remove the feature"
                )
            if feature.biased is not None and feature.biased not in self.task_names:
                uses = [BIAS + name for name in self.task_names]
                raise ValueError(
                    f"feature {feature.name!r}: use {feature.use!r} names no task; {nearest(feature.use, uses)}"
                )
        if all(feature.use != "shared" for feature in self.features):
            raise ValueError(
                "every feature is kept from the tasks by its 'use'; leave it out of those they should read"
            )

    def _check_parents(self) -> None:
        """Raise ``ValueError`` where the ``given`` or ``where`` of a task is not another binary task."""
        kinds = {task.name: task.kind for task in self.tasks}
        for task in self.tasks:
            for word in ("given", "where"):
                parent = getattr(task, word)
                if parent is not None and (kinds.get(parent) != "binary" or parent == task.name):
                    others = [name for name, kind in kinds.items() if kind == "binary" and name != task.name]
                    found = f" (it is {kinds[parent]})" if parent in kinds and parent != task.name else ""
                    advice = nearest(parent, others) if others else f"add one of that name, or leave {word!r} out"
                    raise ValueError(
                        f"task {task.name!r}: {word} {parent!r} is not another binary task{found}; {advice}"
                    )

    def _check_outputs(self) -> None:
        """Raise ``ValueError`` where an output is made of what is no number of a prediction or a row."""
        there = dict.fromkeys((*self.raw_numbers(), *(name for task in self.tasks for name in task.numbers())))
        open_tasks = [task.name for task in self.tasks if task.kind == "multiclass" and not task.classes]
        for output in self.outputs:
            for name in output.compiled().names:
                if name in there or any(name.startswith(f"{task}=") for task in open_tasks):
                    continue
                advice = nearest(name, (*there, *(f"{task}=..." for task in open_tasks)))
                raise ValueError(
                    f"output {output.name!r}: {name!r} is no number that a prediction or a row has; {advice}"
                )
            there[output.name] = None

    def order(self) -> tuple[int, ...]:
        """Task indices with every ``given`` parent before its children."""
        index = {task.name: i for i, task in enumerate(self.tasks)}
        done: list[int] = []
        for start in range(len(self.tasks)):
            path: list[int] = []
            at: int | None = start
            while at is not None and at not in done:
                if at in path:
                    raise ValueError(
                        f"task {self.tasks[at].name!r}: its chain of 'given' comes back to itself; "
                        "leave 'given' out of one of its tasks"
                    )
                path.append(at)
                parent = self.tasks[at].given
                at = index[parent] if parent is not None else None
            done.extend(reversed(path))
        return tuple(done)

    def parents(self) -> tuple[int | None, ...]:
        """For each task the index of its ``given`` parent."""
        index = {task.name: i for i, task in enumerate(self.tasks)}
        return tuple(None if task.given is None else index[task.given] for task in self.tasks)

    def risks(self) -> tuple[Risk, ...]:
        """The counterfactual risks that tasks ask for."""
        return tuple(
            Risk(at, parent, task.risk, task.risk_weight, task.risk_clip)
            for at, (task, parent) in enumerate(zip(self.tasks, self.parents(), strict=True))
            if task.risk != "joint" and parent is not None
        )

    def task(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        raise ExperimentError(f"there is no task {name!r}; {nearest(name, self.task_names)}")

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def only(self, names: Sequence[str]) -> "Schema":
        """The schema of some of the tasks alone, each cut loose from parents that are not among them.

        Features that only bias other tasks are left out, and so are outputs, which are made of all. The weight of a
        single task stays what it is: one that fades beside others would only cease to learn.
        """
        kept = tuple(
            task.with_(
                given=task.given if task.given in names else None,
                risk=task.risk if task.given in names else "joint",
                where=task.where if task.where in names else None,
                weight_factor=task.weight_factor if len(names) > 1 else 1.0,
            )
            for task in self.tasks
            if task.name in names
        )
        features = tuple(one for one in self.features if one.biased is None or one.biased in names)
        return self.with_(features=features, tasks=kept, outputs=())

    def read_types(self) -> dict[str, str]:
        """How text is read: ``types``, and bags that have none as the text that they are, not as the number 39,12."""
        bags = {one.source for one in self.features if isinstance(one, Bag)}
        others = {one.source for one in self.features if not isinstance(one, Bag)} | {self.time, self.group}
        return dict.fromkeys(sorted(bags - others), "string") | self.types

    def later_types(self) -> dict[str, str]:
        """How text is read once a model is there: ``read_types``, but nothing that was never seen is refused.

        Categories and groups are text, which is spelled as the values of training were; whole numbers may have become
        fractional ones, as a null makes them in pandas, decimals longer ones, and days times. Labels of 0 and 1 or of
        truth values are text as well, since later they may be the other.
        """
        roles = self._roles()
        return {name: _later_type(kind, roles.get(name, set())) for name, kind in self.read_types().items()}

    def _roles(self) -> dict[str, set[_Role]]:
        """What each column is there for."""
        found: list[tuple[str | None, _Role]] = [(one.source, _FEATURE_ROLES[one.kind]) for one in self.features]
        for task in self.tasks:
            found += [(task.source, _label_role(task)), (task.sample_weight, "number")]
        found += [(self.group, "name"), (self.time, "other"), *((name, "key") for name in self.keys)]
        roles: dict[str, set[_Role]] = {}
        for name, role in found:
            if name is not None:
                roles.setdefault(name, set()).add(role)
        return roles

    def raw_numbers(self) -> dict[str, str]:
        """The columns of features of kind ``number`` by the features' names; none has the name of a prediction."""
        taken = {name for task in self.tasks for name in (task.name, *task.numbers())}
        features = (one for one in self.features if isinstance(one, Number) and one.biased is None)
        return {one.name: one.source for one in features if one.name not in taken}

    def columns(self, *, labels: bool = True, carried: bool = True) -> tuple[str, ...]:
        """Source columns, each once: features', then (on request) labels and their weights, then keys, time, group.

        Without labels, for predicting, what only biases a task is not needed.
        """
        wanted = [feature.source for feature in self.features if labels or feature.biased is None]
        if labels:
            wanted += [task.source for task in self.tasks]
            wanted += [task.sample_weight for task in self.tasks if task.sample_weight]
        if carried:
            wanted += [*self.keys, *(name for name in (self.time, self.group) if name)]
        return tuple(dict.fromkeys(wanted))
