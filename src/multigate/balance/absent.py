"""A balance of somebody's own, of which a run or bundle tells, and whose code is not at hand."""

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict, model_validator

from multigate.balance.balance import Balance, Balancer
from multigate.errors import ExperimentError
from multigate.schema import Task


class Absent(Balance):
    """The name and the settings it had. Only training needs more than that."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        return data

    def build(self, tasks: Sequence[Task]) -> Balancer:
        raise ExperimentError(
            f"balance {self.method!r} is not built in; give its options: experiment.with_(balance=Mine()), or take "
            "another"
        )
