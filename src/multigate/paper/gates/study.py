"""Figure 6 of the paper (Ma et al. 2018, section 6.4): what gates read, over several runs, and whether they differ."""

import shutil
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator

from multigate.data.prepared import Prepared
from multigate.data.rows import join, to_device
from multigate.datasets.census_income import census_schema
from multigate.datasets.kuairand import PARTS
from multigate.errors import DataError
from multigate.experiment import Experiment, Optimizer
from multigate.model import Model
from multigate.options import Options
from multigate.paper.account import Account
from multigate.paper.gates.account import tell
from multigate.paper.ledger import Row
from multigate.paper.numbers import EMBEDDING, binned
from multigate.paper.recommender.bottoms import BOTTOM, EXPERTS, structures_on
from multigate.paper.recommender.sources import kuairand, prepare_once
from multigate.paper.study import Count, Site, Study
from multigate.sharing import MMoE
from multigate.training.loop import fit

Data = Literal["census_1", "census_2", "kuairand"]
PIECE = 64
"""Rows that are taken together where rows are thinned out."""


class GatesStudy(Options):
    """Settings of the study; what the paper does not say is a choice of ours."""

    runs: int = Field(default=8, ge=2)
    """On each data set; they differ in their seed."""
    data: tuple[Data, ...] = Field(default=("census_1", "census_2", "kuairand"), min_length=1)
    """The census with each pair of the paper's tasks, and KuaiRand."""
    experts: int = Field(default=EXPERTS, ge=2)
    """As many as Figure 6 draws."""
    hidden: tuple[Count, ...] = Field(default=(128, 64), min_length=1)
    """Widths of an expert on the census, where experts read the embeddings."""
    bottom: tuple[Count, ...] = Field(default=BOTTOM, min_length=2)
    """Widths on KuaiRand, where, as in the paper's recommender, the top layer alone is a mixture."""
    epochs: int = Field(default=12, ge=1)
    """At most; weights are those that were best on validation rows."""
    rows: int = Field(default=2_048, ge=1)
    """Test rows whose gates are looked at, about, evenly spread and the same for all runs."""

    @field_validator("data")
    @classmethod
    def _once(cls, names: tuple[Data, ...]) -> tuple[Data, ...]:
        return tuple(dict.fromkeys(names))


QUICK = {"runs": 3, "data": ("census_1", "kuairand"), "epochs": 1}


def run(settings: GatesStudy, site: Site) -> list[Account]:
    """Run the parts that are not there yet, and tell what was found."""
    rows: list[Row] = []
    for at, name in enumerate(settings.data):
        experiment = experiment_on(name, settings, site.data)
        prepared = prepare_once(name, experiment, site)
        for seed in range(settings.runs):
            rows.append(_trained(name, experiment.with_(seed=seed), prepared, settings, site))
            site.report("gates (runs)", at * settings.runs + seed + 1, len(settings.data) * settings.runs)
    return tell(rows)


def experiment_on(name: Data, settings: GatesStudy, data: Path) -> Experiment:
    """MMoE on a data set as ``fetch`` wrote it. Raises ``DataError`` where its tables are not there."""
    if name == "kuairand":
        source = kuairand(data)
        schema, tables = source.schema, source.tables
        sharing = structures_on(settings.bottom, settings.experts)["mmoe"]
    else:
        schema = binned(census_schema(1 if name == "census_1" else 2))
        tables = {part: str(data / "census-income" / f"{part}.parquet") for part in PARTS}
        missing = [path for path in tables.values() if not Path(path).is_file()]
        if missing:
            raise DataError(f"there is no {missing[0]}; multigate fetch census-income writes it to data/census-income")
        sharing = MMoE(experts=settings.experts, hidden=settings.hidden)
    return Experiment(
        schema=schema,
        train=tables["train"],
        valid=tables["valid"],
        test=tables["test"],
        sharing=sharing,
        embedding=EMBEDDING,
        optimizer=Optimizer(intercepts="trained"),
        epochs=settings.epochs,
    )


def _trained(name: str, experiment: Experiment, prepared: Prepared, settings: GatesStudy, site: Site) -> Row:
    """The row of one training, which is done now if it was not before."""
    part = f"{name}-{experiment.seed}"
    if not site.ledger.has(part):
        folder = site.ledger.folder / "work" / part
        folder.mkdir(parents=True, exist_ok=True)
        fitted = fit(experiment, prepared, folder, device=site.device, report=site.report, resume=True)
        gates = gates_of(fitted.model, prepared, settings.rows, site.device)  # (R, T, E)
        row = {
            "data": name,
            "structure": "mmoe",
            "seed": experiment.seed,
            "tasks": list(experiment.schema.task_names),
            "label_rates": [task.mean for task in prepared.layout.tasks],
            "shape": list(gates.shape),
            "gates": gates.flatten().tolist(),
            **{f"valid/{task}/auc": fitted.best[f"{task}/auc"] for task in experiment.schema.task_names},
            "epochs": fitted.epochs,
            "seconds": fitted.seconds,
        }
        site.ledger.keep(part, [row])
        shutil.rmtree(folder, ignore_errors=True)
        aucs = ", ".join(f"{task} {row[f'valid/{task}/auc']:.4f}" for task in experiment.schema.task_names)
        site.report.line(f"{part}: {aucs}; {fitted.seconds:.0f} s")
    return dict(site.ledger.rows(part)[0])


@torch.inference_mode()
def gates_of(model: Model, prepared: Prepared, rows: int, device: torch.device) -> torch.Tensor:
    """Gate weights (R, T, E) of the same test rows each time: about so many, evenly spread."""
    batch = to_device(join(list((prepared.test or prepared.valid).sample(PIECE, rows))), device)
    (gates,) = model.eval()(batch.numbers, batch.categories, batch.bags).gates
    return gates.float().cpu()


STUDY = Study("Gates: Figure 6 over several runs", GatesStudy, QUICK, run, may_change=("runs", "data"))
