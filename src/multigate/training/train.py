"""From an experiment to a finished run: prepare the rows, fit, keep the bundle."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from multigate.assembly import build_model
from multigate.balance import BALANCES
from multigate.bundle import Bundle, load
from multigate.bundle_files import ABOUT, FILES, GRAPH, ROW_GRAPH, WEIGHTS, is_damaged
from multigate.data.copies import copies
from multigate.data.encoder import Encoder
from multigate.data.files import Source, open_table
from multigate.data.loader import CPU
from multigate.data.prepared import Prepared, open_prepared, prepare
from multigate.data.split import PARTS
from multigate.errors import ExperimentError, RunError, nearest
from multigate.evaluate import Monitor
from multigate.experiment import Experiment, as_experiment
from multigate.folders import EXPERIMENT, SUMMARY, folder_named
from multigate.model import Model
from multigate.nn.blank import Blank
from multigate.nn.defaults import defaults
from multigate.run import Run, claimed, open_run, strict
from multigate.sharing import STRUCTURES
from multigate.training.checkpoint import load_weights, rows_of_checkpoint
from multigate.training.fit import BEST, CHECKPOINT
from multigate.training.interrupts import interruptible
from multigate.training.loop import choose_device, fit
from multigate.training.progress import Reporter
from multigate.training.recalibrate import fit_curves, sampling_curves
from multigate.training.warm_start import check_start
from multigate.writing import disk_errors, remove, write_text

PREPARED, BUNDLE = "prepared", "bundle"

SELDOM = 0.95
"""A task known on less than this share of the rows where its ``given`` parent is 1 is told of."""


def train(
    experiment: Experiment,
    out: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    tables: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Train an experiment into the folder ``out`` and return its run.

    ``tables`` gives tables (pandas, polars, pyarrow, dict of lists) for ``train``, ``valid`` or ``test`` in place of
    the experiment's files. With ``resume`` a run that was interrupted goes on and ends with the same weights, and one
    that is finished gets back its prepared rows where they are gone, and its bundle where it is gone or damaged. With
    ``experiment.warm_start`` it begins with the weights and the encoder of an earlier bundle, and ends with weights at
    least as good on the validation rows.

    Raises ``RunError`` where ``out`` holds something else, ``DataError`` and ``ExperimentError`` for what cannot be.
    """
    experiment = as_experiment(experiment)
    folder = folder_named(out)
    chosen = choose_device(device)
    finished = resume and (folder / SUMMARY).is_file()
    if not finished:
        Monitor(experiment.monitor, experiment.schema)  # refused before any table is read
    sources = {} if finished else open_sources(experiment, tables)
    with (
        interruptible(lambda: _go_on(folder, typed=not tables and _built_in(experiment))),
        claimed(folder, experiment, resume=resume, progress=CHECKPOINT),
    ):
        with Reporter(quiet=quiet) as report:
            # another process may have finished it while tables were opened here
            if finished or (resume and (folder / SUMMARY).is_file()):
                _complete(experiment, tables, folder, chosen, report)
            else:
                _train(experiment, sources, folder, chosen, report, resume=resume)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return open_run(folder, structures=[type(experiment.sharing)])


def _train(
    experiment: Experiment,
    sources: Mapping[str, Source],
    folder: Path,
    device: torch.device,
    report: Reporter,
    *,
    resume: bool,
) -> None:
    """Everything a run leaves in its folder; the summary comes last."""
    start = _start(experiment)
    base = None if start is None else start.encoder
    if start is not None and experiment.recalibrate == "none" and start.curves != sampling_curves(start.schema):
        report.line(
            f"the curves that calibrate {experiment.warm_start} are left behind; set recalibrate to fit new ones"
        )
    begun = (folder / CHECKPOINT).is_file()
    known = rows_of_checkpoint(folder / CHECKPOINT) if begun else None
    prepared = prepare_sources(experiment, sources, folder / PREPARED, report, base, replace=not begun, known=known)
    for table, many in prepared.manifest.get("left_out", {}).items():
        report.detail(f"{table}: {many:,} values are read as unseen (too rare, or beyond max_size)")
    for name, many in prepared.manifest.get("unflagged", {}).items():
        report.line(
            f"{name} is missing in {many:,} training rows, and was in none of those that {experiment.warm_start} was "
            "trained on: the model reads the mean there; to have it learn what a gap says, train from the start"
        )
    fitted = fit(experiment, prepared, folder, device=device, report=report, start=start, resume=resume)
    _keep(experiment, prepared, fitted.model, device, folder)
    summary = {
        "best": strict(fitted.best),
        "epochs": fitted.epochs,
        "seconds": round(fitted.seconds, 3),
        "rows_per_second": round(fitted.rows_per_second),
        "rows": {name: part.rows for name, part in prepared.parts.items()},
        "encoder": prepared.encoder.fingerprint,
        "prepared": prepared.content,
        "parameters": sum(p.numel() for p in fitted.model.parameters()),
        "multiply_adds": fitted.model.multiply_adds(),
        "device": str(device),
        "versions": {
            "multigate": version("multigate"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    write_text(folder / SUMMARY, json.dumps(summary, indent=1))


def _keep(experiment: Experiment, prepared: Prepared, model: Model, device: torch.device, folder: Path) -> None:
    """The bundle of a run."""
    curves = fit_curves(experiment, prepared, model, device)
    Bundle(experiment, prepared.encoder, model.cpu(), curves).save(folder / BUNDLE)


def _complete(
    experiment: Experiment, tables: Mapping[str, Any] | None, folder: Path, device: torch.device, report: Reporter
) -> None:
    """Make again what of a finished run is gone: prepared rows from its tables, the bundle, a damaged one too, from its
    best weights.

    Raises ``RunError`` where the tables are no longer those it was trained on, or it cannot be known.
    """
    bundle = folder / BUNDLE
    bundled = all((bundle / name).is_file() for name in (ABOUT, *FILES)) and not is_damaged(bundle)
    prepared = open_prepared(folder / PREPARED) or _prepared_again(experiment, tables, folder, report)
    if bundled:
        return
    with defaults(CPU), Blank():
        model = build_model(experiment, prepared.encoder)
    weights = load_weights(folder / BEST, CPU)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{folder / BEST} does not fit the run in {folder}; train again in another folder") from error
    for name in (ABOUT, WEIGHTS, GRAPH, ROW_GRAPH, "encoder"):
        remove(bundle / name)
    _keep(experiment, prepared, model.to(device), device, folder)


def _prepared_again(
    experiment: Experiment, tables: Mapping[str, Any] | None, folder: Path, report: Reporter
) -> Prepared:
    """The rows of a finished run, whose encoder is known by its fingerprint, prepared anew."""
    known = open_run(folder).summary.get("encoder")
    if known is None and (folder / BUNDLE / ABOUT).is_file():  # an older summary
        known = Encoder.load(folder / BUNDLE / "encoder", experiment.schema).fingerprint
    if known is None:
        raise RunError(
            f"the run in {folder} has lost its bundle and its prepared rows, and does not tell which rows it was "
            "trained on; train again in another folder"
        )
    start = _start(experiment)
    base = None if start is None else start.encoder
    sources = open_sources(experiment, tables)
    prepared = prepare_sources(experiment, sources, folder / PREPARED, report, base, replace=False, encoder=known)
    content = open_run(folder).summary.get("prepared")  # older ones do not tell
    if prepared.encoder.fingerprint != known or not (content is None or prepared.is_known_as(content)):
        remove(folder / PREPARED)
        raise RunError(
            f"the tables changed since the run in {folder} was trained; change them back, or train in another folder"
        )
    return prepared


def _go_on(folder: Path, *, typed: bool) -> str:
    """How a training that was stopped is gone on with; ``typed`` where a command does: all it reads is in files that it
    names, and all it computes with is built in."""
    if (folder / EXPERIMENT).is_file() and not typed:
        return "go on with the same call of train and resume=True"
    if (folder / EXPERIMENT).is_file():
        return f"go on with: multigate train --resume --out {quote(str(folder))}"
    return "nothing was begun yet, so run the same command again"


def _built_in(experiment: Experiment) -> bool:
    """Whether a command line knows its structure and its balance."""
    return type(experiment.sharing) in STRUCTURES.values() and type(experiment.balance) in BALANCES.values()


def open_sources(experiment: Experiment, tables: Mapping[str, Any] | None) -> dict[str, Source]:
    """The tables of an experiment, opened; the missing ones are left out. Rows to go on from are later rows.

    Raises ``ExperimentError`` where there is none to train on or ``tables`` names another part, ``DataError`` where one
    cannot be read.
    """
    tables = {} if tables is None else tables
    if not isinstance(tables, Mapping):
        raise ExperimentError(
            f"'tables' wants parts of the rows and their tables, such as {{'train': table}}; "
            f"found {type(tables).__name__}"
        )
    for name in tables:
        if name not in PARTS:
            raise ExperimentError(f"'tables' names {name!r}, which is no part of the rows; {nearest(name, PARTS)}")
    given = {"train": experiment.train, "valid": experiment.valid, "test": experiment.test} | dict(tables)
    if given["train"] is None or (isinstance(given["train"], str) and not given["train"]):
        raise ExperimentError("the experiment names no table: set 'train' to a file, folder or glob")
    schema = experiment.schema
    types = schema.read_types() if experiment.warm_start is None else schema.later_types()
    return {name: open_table(table, types, trained=schema.types) for name, table in given.items() if table is not None}


def _start(experiment: Experiment) -> Bundle | None:
    """The bundle to go on from, if any."""
    if experiment.warm_start is None:
        return None
    start = load(experiment.warm_start, structures=[type(experiment.sharing)])
    check_start(start, experiment)
    return start


def prepare_sources(
    experiment: Experiment,
    sources: Mapping[str, Source],
    folder: Path,
    report: Reporter,
    base: Encoder | None = None,
    *,
    replace: bool = True,
    known: str | None = None,
    encoder: str | None = None,
) -> Prepared:
    """The experiment's rows, split, encoded and on disk; reused where they are there already.

    Without ``replace`` rows that models were trained on already must still be those of the tables; which these are may
    be ``known``, by their ``content``, and of which ``encoder``, by its fingerprint.
    """
    with disk_errors(folder):
        prepared = prepare(
            experiment.schema,
            sources["train"],
            sources.get("valid"),
            sources.get("test"),
            experiment.split,
            folder,
            report,
            base=base,
            replace=replace,
            known=known,
            encoder=encoder,
        )
    for part, share in copies(prepared).items():
        advice = "keep them out of one of the two" if part in sources else "keep each row once in the table"
        report.once(
            f"{part}: {share:.0%} of the rows are copies of training rows, beyond those that are alike by chance; "
            f"scores on them reward what was learnt by heart, so {advice} (unless they are rows of their own, whose "
            "labels follow from features that are alike)"
        )
    for task, one in zip(experiment.schema.tasks, prepared.encoder.stats, strict=True):
        if task.sample_weight is None and one.followed is not None and one.followed < SELDOM:
            report.once(
                f"{task.name} is known in {one.followed:.0%} of the rows where {task.given} is 1, and in all where it "
                f"is 0: each known one counts {1 / one.followed:.3g} times there, as if the unknown were like them"
            )
    return prepared
