"""Fixtures every test may use."""

import gc
import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import processes

if TYPE_CHECKING:
    from multigate.experiment import Experiment


gc.set_threshold(700, 10, 100)  # the oldest, what was imported, stays: looking through it takes half a second each time
processes.forget_power_cuts()
BACKWARDS = os.environ.get("PYTEST_XDIST_WORKER", "")[-1:] in tuple("13579")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Every other process goes through the files backwards: half of them it finds rewritten already."""
    report = yield
    if BACKWARDS and isinstance(collector, pytest.Dir):
        report.result.reverse()
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All processes have the tests in one order."""
    items.sort(key=lambda item: item.path.parts)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; the test is skipped, saying so, where it is absent."""
    folder = os.environ.get("MULTIGATE_DATA")
    if not folder:
        pytest.skip("MULTIGATE_DATA is not set: it names the folder that holds census-income/ and kuairand/")
    return Path(folder)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Every test starts from the same random state."""
    import torch  # not where this is imported: the process that hands out the tests has no need of it

    torch.default_generator.manual_seed(0)  # of the CPU alone: to seed what is not there takes a thousand times longer


@pytest.fixture(scope="session")
def feed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated feed: train, valid and test.parquet, and the truth beside them."""
    from multigate.datasets.feed import Feed, write_feed

    folder = tmp_path_factory.mktemp("feed")
    write_feed(Feed(rows=6_000, users=400, items=200), folder)
    return folder


@pytest.fixture(scope="session")
def feed_experiment(feed_folder: Path) -> "Experiment":
    """A small MMoE on that feed, two epochs of float32."""
    from multigate.datasets.feed import feed_schema
    from multigate.experiment import Experiment
    from multigate.sharing import MMoE

    return Experiment(
        schema=feed_schema(),
        train=str(feed_folder / "train.parquet"),
        valid=str(feed_folder / "valid.parquet"),
        test=str(feed_folder / "test.parquet"),
        sharing=MMoE(experts=3, hidden=(16, 8)),
        tower=(8,),
        embedding={"dim": 8, "dropout": 0.2, "scale": 0.1},
        optimizer={"learning_rate": 0.01},
        epochs=2,
        batch_size=256,
        precision="float32",
    )
