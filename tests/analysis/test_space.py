"""What is tried is read as people write it, checked before anything runs, and put where --set would put it."""

from typing import Any

import numpy as np
import pytest

from multigate.analysis.ranges import Choice, Range
from multigate.analysis.space import (
    applied,
    combinations,
    experiment_at,
    in_vain,
    point_of,
    read_space,
    read_try,
    usual_space,
)
from multigate.errors import ExperimentError
from multigate.experiment import Experiment, make_experiment
from multigate.sharing import PLE, STRUCTURES, MMoE

DATA = {
    "schema": {"features": [{"name": "x", "kind": "number"}], "tasks": [{"name": "a"}, {"name": "b"}]},
    "sharing": {"structure": "mmoe", "experts": 4, "hidden": [64]},
}
GIVEN = make_experiment(DATA)


@pytest.mark.parametrize(
    ("key", "written", "wanted"),
    [
        ("optimizer.learning_rate", "1e-4..1e-2", Range(low=1e-4, high=1e-2, log=True)),
        ("optimizer.learning_rate", (1e-4, 1e-2), Range(low=1e-4, high=1e-2, log=True)),
        ("embedding.dropout", "0..0.5", Range(low=0, high=0.5)),
        ("optimizer.weight_decay", "0..1", Range(low=0, high=1)),  # whole ends of a field of any numbers
        ("sharing.experts", "2..16", Range(low=2, high=16, whole=True)),
        ("sharing.experts", "2..20", Range(low=2, high=20, whole=True, log=True)),
        ("sharing.experts", "2.0..16.0", Range(low=2, high=16, whole=True)),
        ("sharing.experts", (2.0, 16.0), Range(low=2, high=16, whole=True)),
        ("batch_size", "1e2..1e3", Range(low=100, high=1000, whole=True, log=True)),
        ("optimizer.clip", "0.5..3", Range(low=0.5, high=3)),
        ("sharing", "mmoe,ple, shared_bottom", Choice(values=("mmoe", "ple", "shared_bottom"))),
        ("sharing.hidden", "[64],[128, 64]", Choice(values=("[64]", "[128, 64]"))),
        ("sharing.hidden", [(64,), (128, 64)], Choice(values=("[64]", "[128, 64]"))),
        ("patience", "null,3", Choice(values=("null", "3"))),
        ("optimizer.schedule", "one_cycle,cosine", Choice(values=("one_cycle", "cosine"))),
        ("batch_size", [64, 256], Choice(values=("64", "256"))),
        ("optimizer.learning_rate", "1e-3,1e-2", Choice(values=("0.001", "0.01"))),  # text, as YAML reads them
        ("optimizer.learning_rate", ["1e-3", 0.01], Choice(values=("0.001", "0.01"))),
        ("optimizer.learning_rate", np.logspace(-4, -2, 3), Choice(values=("0.0001", "0.001", "0.01"))),
        ("optimizer.learning_rate", [np.float64(1e-3), np.float32(0.5)], Choice(values=("0.001", "0.5"))),
        ("sharing.experts", (np.int64(2), np.int64(16)), Range(low=2, high=16, whole=True)),
        ("sharing.hidden", [np.array([64]), (np.int64(128), 64)], Choice(values=("[64]", "[128, 64]"))),
        ("sharing.hidden", np.array([[64, 8], [128, 64]]), Choice(values=("[64, 8]", "[128, 64]"))),
    ],
)
def test_values_are_read_as_they_are_meant(key: str, written: object, wanted: object) -> None:
    assert read_space(GIVEN, {key: written})[key] == wanted  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"sharing.expert": "2..16"}, "did you mean 'experts'"),
        ({"sharing.experts": "0..16"}, "greater than or equal to 1"),
        ({"sharing.experts": "1.5..4"}, "valid integer"),
        ({"sharing": "mmoe,pel"}, "did you mean 'ple'"),
        ({"balance": "fixed,uncertanty"}, "did you mean 'uncertainty'"),
        ({"optimiser.learning_rate": "1e-4..1e-2"}, "did you mean 'optimizer'"),
        ({"embedding.dropout": "0..1"}, "less than 1"),
        ({"sharing.levels": "1..2"}, "unknown key 'levels'"),
        ({"sharing": "ple,mmoe", "sharing.levels": "1..3"}, "PLE: 3 levels"),
        ({"embedding.tables": "shared,own"}, "one input for all tasks"),
        ({"schema.group": "x,y"}, "encoded once"),
        ({"split.valid": "0.1..0.2"}, "encoded once"),
        ({"monitor": "mean,a/auc"}, "judged by"),
        ({"seed": "0..9"}, "lucky"),
        ({"epochs": "8"}, "two or more"),
        ({"epochs": "8..4"}, "the lower end first"),
        ({"epochs": "a..4"}, "between two numbers"),
        ({"epochs": "1..99999999999999999999"}, "ends at 9,007,199,254,740,992; found 1 to 1e"),
        ({"epochs": (1, 2, 3)}, "two numbers"),
        ({"epochs": 8}, r"a list of values, a range \(low, high\), or text .*found 8"),
        ({"epochs": np.array(8)}, r"a list of values, a range .*found array\(8\)"),
        ({"epochs": {4: 8}}, "a list of values, a range .*found {4: 8}"),
        ({"sharing": [object(), "ple"]}, "sharing: <object .* is no value that an experiment file could hold"),
        ({"epochs.x": "1..2"}, "no fields of its own"),
        ({"balance.method": "fixed,dwa", "balance": "fixed,famo"}, "tried twice"),
    ],
)
def test_what_cannot_be_is_refused(wanted: dict[str, Any], told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        read_space(GIVEN, wanted)


@pytest.mark.parametrize("text", ["sharing.experts", "=2..4"])
def test_a_try_wants_a_field_and_values(text: str) -> None:
    with pytest.raises(ExperimentError, match="--try wants"):
        read_try(text)
    assert read_try("sharing={structure: mmoe, experts: 2},ple") == ("sharing", "{structure: mmoe, experts: 2},ple")


def test_a_point_is_what_set_would_make_of_it() -> None:
    point = {"sharing": "ple", "sharing.levels": 1, "optimizer.learning_rate": 0.0031622776, "tower.hidden": "[8, 4]"}
    changes = {"sharing": {"structure": "ple", "levels": 1}, "optimizer": {"learning_rate": 0.003162}, "tower": [8, 4]}
    assert experiment_at(GIVEN, point) == make_experiment(DATA | changes)


def test_the_experiments_own_block_goes_by_its_name_and_fields_that_a_block_has_not_are_left_alone() -> None:
    assert experiment_at(GIVEN, {"sharing": "mmoe"}) == GIVEN
    assert experiment_at(GIVEN, {"sharing": "mmoe", "sharing.experts": 2}).sharing == MMoE(experts=2, hidden=(64,))
    bottom = {"sharing": "shared_bottom", "sharing.experts": 2}
    assert experiment_at(GIVEN, bottom) == make_experiment(DATA | {"sharing": "shared_bottom"})
    assert applied(GIVEN, bottom) == {"sharing": "shared_bottom", "sharing.experts": None}
    assert applied(GIVEN, {"balance": "dwa", "sharing.experts": 3}) == {"balance": "dwa", "sharing.experts": 3}


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("tower.dropout", "0,0.2"),  # it has 0.0
        ("optimizer.clip", [5, 1]),  # 1.0
        ("epochs", [GIVEN.epochs + 0.0, 40]),
        ("sharing", [MMoE(experts=4, hidden=(64,)), PLE()]),
        ("sharing", ["shared_bottom", {"structure": "mmoe", "hidden": [64], "experts": 4}]),
    ],
)
def test_a_choice_that_is_the_experiments_own_is_known_however_it_is_written(key: str, written: Any) -> None:
    given = GIVEN.with_(optimizer={"clip": 1.0})
    point = point_of(given, read_space(given, {key: written}))
    assert point is not None
    assert experiment_at(given, point) == given
    assert point_of(given, read_space(given, {"sharing": "ple,shared_bottom"})) is None


def test_an_optimizer_is_chosen_by_its_name_beside_its_fields() -> None:
    given = make_experiment(DATA | {"optimizer": {"clip": 1, "learning_rate": 0.001}})
    space = read_space(given, {"optimizer": "adam,adamw", "optimizer.learning_rate": "1e-3,1e-2"})
    found = combinations(given, space, 9)
    assert found is not None
    assert point_of(given, space) in found
    tried = [experiment_at(given, point).optimizer for point in found]
    assert [(one.name, one.learning_rate, one.clip) for one in tried] == [
        (name, rate, clip) for name, clip in (("adam", None), ("adamw", 1)) for rate in (0.001, 0.01)
    ]
    with pytest.raises(ExperimentError, match="optimizer=sgd: optimizer"):
        read_space(given, {"optimizer": "adam,sgd", "optimizer.learning_rate": "1e-3,1e-2"})


def test_what_moves_nothing_is_told_unless_a_value_that_is_tried_makes_it_move_something() -> None:
    given = make_experiment(DATA | {"sharing": {"structure": "mmoe", "k": 3}})
    (told,) = in_vain(given, read_space(given, {"sharing.experts": "2..4", "epochs": "1..2"}))
    assert told.startswith("sharing.k moves nothing")
    assert in_vain(given, read_space(given, {"sharing.gating": "softmax,top_k", "epochs": "1..2"})) == []


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_usual_space_holds_the_experiment_whatever_it_is(name: str) -> None:
    given = make_experiment(DATA | {"sharing": name, "optimizer": {"learning_rate": 0.003}})
    space = usual_space(given)
    point = point_of(given, space)
    assert point is not None
    assert experiment_at(given, point) == given
    for key, one in space.items():
        ends = one.values if isinstance(one, Choice) else (one.at(0.0), one.at(1.0))
        assert len({experiment_at(given, point | {key: end}).to_yaml() for end in ends}) == len(ends), key


@pytest.mark.parametrize("rates", ["1e-3,1e-2", ["1e-3", "1e-2"], np.logspace(-3, -2, 2)])
def test_an_experiment_is_at_its_choice_however_its_number_is_written(rates: Any) -> None:
    given = make_experiment(DATA | {"optimizer": {"learning_rate": 0.001}})
    space = read_space(given, {"optimizer.learning_rate": rates})
    assert point_of(given, space) == {"optimizer.learning_rate": "0.001"}
    found = combinations(given, space, 9)
    assert found is not None
    assert [experiment_at(given, point).optimizer.learning_rate for point in found] == [0.001, 0.01]


def test_a_structure_with_options_may_be_chosen_beside_a_name() -> None:
    space = read_space(GIVEN, {"sharing": [MMoE(experts=3), "ple"]})
    found = combinations(GIVEN, space, 9)
    assert found is not None
    assert [experiment_at(GIVEN, point).sharing for point in found] == [MMoE(experts=3), PLE()]


def test_an_end_just_below_one_is_not_rounded_to_one() -> None:
    """An average of 1 would never move, and no experiment may have it."""
    space = read_space(GIVEN, {"optimizer.average": (0.9, 0.99999)})
    one = space["optimizer.average"]
    assert isinstance(one, Range)
    assert experiment_at(GIVEN, {"optimizer.average": one.at(1.0)}).optimizer.average == 0.99999
    assert experiment_at(GIVEN, {"optimizer.average": 0.98765432}).optimizer.average == 0.9877
    assert experiment_at(GIVEN, {"optimizer.learning_rate": 1.00004}).optimizer.learning_rate == 1


def test_an_experiment_outside_the_space_has_no_point() -> None:
    def place(given: Experiment, **wanted: str) -> object:
        return point_of(given, read_space(given, {key.replace("__", "."): value for key, value in wanted.items()}))

    assert place(GIVEN, optimizer__learning_rate="1e-4..1e-3") is None
    assert place(GIVEN, optimizer__learning_rate="1e-3..1e-2") is None, "null is no number"
    settled = GIVEN.settled(1_000)
    assert place(settled, optimizer__learning_rate="1e-3..1e-2") == {"optimizer.learning_rate": 0.002}
    assert place(settled, batch_size="32..256") == {"batch_size": 32}
    assert place(GIVEN, sharing="ple,shared_bottom") is None
    assert place(GIVEN, batch_size="64..256") is None, "null is no number"
    assert place(GIVEN.with_(optimizer={"learning_rate": 0.00212345}), optimizer__learning_rate="1e-3..1e-2") is None


def test_combinations_are_counted_by_the_experiments_they_make() -> None:
    space = read_space(GIVEN, {"sharing": "mmoe,shared_bottom", "sharing.experts": "2..4"})
    found = combinations(GIVEN, space, 4)
    assert found is not None
    assert len(found) == 4, "experts make no difference to a shared bottom"
    assert combinations(GIVEN, space, 3) is None
    assert combinations(GIVEN, read_space(GIVEN, {"embedding.dropout": "0..0.5"}), 1_000) is None
