"""The command line: verbs over the same functions Python has; each imports the heavy modules it needs."""

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from typing import Annotated, cast

import typer

app = typer.Typer(
    name="multigate",
    help="Multi-task learning on tables: from a table with several labels to trained, compared models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

STOPPED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP, as shells have it."""

OTHERS = {
    **dict.fromkeys(("predict", "infer", "apply"), "score RUN TABLE --out predictions.parquet writes predictions"),
    **dict.fromkeys(("evaluate", "eval", "test"), "score RUN scores the rows it set aside, score RUN TABLE others"),
    **dict.fromkeys(
        ("recalibrate", "calibrate"), "train --set recalibrate=isotonic does it, or mg.recalibrate in Python"
    ),
    **dict.fromkeys(("explain", "gates", "importance"), "inspect RUN tells why"),
    **dict.fromkeys(("fit", "resume"), "train EXPERIMENT trains, and --resume goes on"),
    **dict.fromkeys(("plot", "show", "card"), "report RUN writes a page, with --out card.md a model card"),
}
"""What people call commands elsewhere."""

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field; may be repeated.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="An experiment file (YAML).")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Options of every verb; ``main`` reads --debug itself, for errors are caught there."""


@app.command()
def init(
    table: Annotated[str, typer.Argument(help="A Parquet, Arrow, CSV or JSON lines file, a folder or a glob.")],
    set_: Set = None,
) -> None:
    """Write an experiment for a table to standard output: multigate init TABLE --set tasks=click,buy > x.yaml."""
    from multigate.data.tasks import read_labels
    from multigate.draft import draft
    from multigate.training.progress import Reporter

    changes = list(set_ or [])
    named = [change.removeprefix("tasks=") for change in changes if change.startswith("tasks=")]
    tasks = [task for text in named for task in read_labels(text)]
    rest = [change for change in changes if not change.startswith("tasks=")]
    with Reporter() as report:
        text = draft(table, tasks, rest, progress=report)
    typer.echo(text, nl=False)


@app.command()
def train(
    experiment: Annotated[Path | None, typer.Argument(metavar="EXPERIMENT", help="An experiment file (YAML).")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    set_: Set = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="A run or bundle to go on from, on rows that came later.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Device = "auto",
) -> None:
    """Train an experiment; keep the best weights as a bundle."""
    from multigate.bundle import load
    from multigate.errors import ExperimentError, RunError
    from multigate.experiment import make_experiment, read_experiment
    from multigate.folders import EXPERIMENT
    from multigate.tables import run_table
    from multigate.training.train import train as run_training

    changes = set_ or ()
    if experiment is None and resume:
        experiment = out / EXPERIMENT
        if not experiment.is_file():
            raise RunError(f"there is no run in {out} to go on with; start one: multigate train EXPERIMENT --out {out}")
    if experiment is not None:
        chosen = read_experiment(experiment, changes)
    elif from_ is not None:
        chosen = make_experiment(load(from_).experiment.to_dict(), changes, name=str(from_))
    else:
        raise ExperimentError("train wants an experiment file (only --from and --resume can do without one)")
    if from_ is not None:
        chosen = chosen.with_(warm_start=str(from_))
    run = run_training(chosen, out, resume=resume, device=device)
    _print(run_table("Validation, best weights", run))
    typer.echo(
        f"\nrun: {run.folder}    predict: multigate score {quote(str(run.folder))} TABLE --out predictions.parquet"
    )


@app.command()
def score(
    run: Annotated[Path, typer.Argument(help="A run or bundle folder.")],
    table: Annotated[str | None, typer.Argument(help="Rows to score or predict: a file, folder or glob.")] = None,
    part: Annotated[
        str | None, typer.Option(help="test or valid: score the run's own rows in place of a table.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write predictions here (.parquet), beside the key columns.")] = None,
    replicates: Annotated[
        int, typer.Option(min=0, help="Bootstrap draws behind the intervals, 20 or more; 0 for none.")
    ] = 200,
    precision: Annotated[
        str | None, typer.Option(help="float32, bfloat16 (faster, third digits differ) or auto.  [default: float32]")
    ] = None,
) -> None:
    """Score a run on a table with labels or on rows it set aside, or write predictions for a table without labels."""
    from multigate.bundle import load
    from multigate.engine import CPU
    from multigate.errors import DataError
    from multigate.precision import Precision, warning
    from multigate.score import score_part, score_table, write_predictions
    from multigate.tables import metric_table
    from multigate.training.progress import Reporter

    if part is not None:
        if table is not None or out is not None or precision is not None:
            raise DataError(
                "score --part takes a run's own rows; leave out the table, --out and --precision, or leave out --part"
            )
        with Reporter() as report:
            metrics, intervals = score_part(run, part, replicates=replicates, progress=report, tell=report.line)
        _print(metric_table(f"{run}, {'validation' if part == 'valid' else part} rows", metrics, intervals))
        return
    if table is None:
        raise DataError("score wants rows; name a table, or add --part test for those that the run set aside")
    chosen = cast(Precision, precision or "float32")  # load checks it
    bundle = load(run, engine="auto" if out is not None else "torch", precision=chosen)
    with Reporter() as report:
        if bundle.engines.table.name == "torch" and (slow := warning(bundle.precision, CPU)) is not None:
            report.line(slow)
        if out is not None:
            rows = write_predictions(bundle, table, out, progress=report)
            report.line(f"{rows:,} predictions in {out}")
            return
        metrics, intervals = score_table(bundle, table, replicates=replicates, progress=report, tell=report.line)
    _print(metric_table(f"{table}", metrics, intervals))


@app.command()
def compare(
    experiment: ExperimentFile,
    structures: Annotated[
        str, typer.Option(help="Names of structures, comma-separated, or 'all'.")
    ] = "single_task,shared_bottom,omoe,mmoe",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each structure.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; called again it goes on.")] = Path(
        "runs/compare"
    ),
    set_: Set = None,
    device: Device = "auto",
) -> None:
    """Train several structures on the same rows, seeds and budget, and tell what sharing gains."""
    from multigate.analysis.compare import compare as run_comparison
    from multigate.experiment import read_experiment

    comparison = run_comparison(
        read_experiment(experiment, set_ or ()), out, structures=structures, seeds=seeds, device=device
    )
    _print(comparison.table())


@app.command()
def tune(
    experiment: ExperimentFile,
    out: Annotated[Path, typer.Option(help="Folder of the trials; called again it goes on.")] = Path("runs/tune"),
    trials: Annotated[int, typer.Option(min=1, help="How many, the experiment as given among them.")] = 30,
    try_: Annotated[
        list[str] | None,
        typer.Option(
            "--try", metavar="KEY=VALUES", help="Values of a field, as low..high or a,b; repeated. Else the usual ones."
        ),
    ] = None,
    goal: Annotated[
        str | None, typer.Option(metavar="TASK/METRIC", help="What trials are judged by, else the monitor.")
    ] = None,
    share: Annotated[float, typer.Option(help="Part of the training rows that trials learn from.")] = 1.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one for each core if not given.")] = None,
    set_: Set = None,
    device: Device = "auto",
) -> None:
    """Try settings of an experiment on validation rows, and write the best of them as an experiment file."""
    from multigate.analysis.space import read_try
    from multigate.analysis.tune import tune as run_tuning
    from multigate.errors import ExperimentError, MultigateError
    from multigate.experiment import read_experiment
    from multigate.folders import BEST
    from multigate.report.tuned import write_tuning

    wanted: dict[str, str] = {}
    for key, values in map(read_try, try_ or ()):
        if key in wanted:
            raise ExperimentError(f"--try names {key} twice; give all its values at once")
        wanted[key] = values
    tuning = run_tuning(
        read_experiment(experiment, set_ or ()),
        wanted or None,
        out=out,
        trials=trials,
        goal=goal,
        share=share,
        workers=workers,
        device=device,
    )
    _print(tuning.table())
    typer.echo(f"\nexperiment: {out / BEST}    train: multigate train {quote(str(out / BEST))} --out runs/best")
    try:
        typer.echo(f"page: {write_tuning(tuning, out / 'tune.html')}")
    except MultigateError as error:
        typer.echo(f"no page: {error}", err=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run or bundle folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundle to serve.")] = Path("served"),
) -> None:
    """Write a bundle whose model is compiled as well, to predict faster."""
    from multigate.bundle import load

    load(run).export(out)
    typer.echo(f"bundle: {out}    predict: multigate.load({str(out)!r}, engine='auto')")


@app.command()
def serve(
    runs: Annotated[
        list[str], typer.Argument(help="Run or bundle folders, each under its name or as NAME=PATH.", metavar="RUN...")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any that is free.")] = 8080,
    engine: Annotated[str, typer.Option(help="auto, onnx or torch.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Processes, each computing on one thread.")] = 1,
) -> None:
    """Answer requests for predictions over HTTP: rows as JSON, or the Open Inference Protocol."""
    from multigate.serve.server import serve as run_server

    run_server(runs, host=host, port=port, engine=engine, workers=workers)


@app.command()
def relate(
    experiment: ExperimentFile,
    pairs: Annotated[str | None, typer.Option(help="Pairs to train, as a+b,c+d; all if not given.")] = None,
    structures: Annotated[
        str, typer.Option(help="Structures to train pairs with, comma-separated.")
    ] = "shared_bottom,mmoe",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each model.")] = 3,
    train: Annotated[bool, typer.Option(help="Train pairs and measure gains, or guess from the rest.")] = True,
    out: Annotated[Path, typer.Option(help="Folder of the trainings; called again it goes on.")] = Path("runs/relate"),
    set_: Set = None,
    device: Device = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Tell which tasks belong together: for every pair to share, to share apart or to train alone, and why."""
    import json

    from multigate.analysis.relate import read_pairs
    from multigate.analysis.relate import relate as run_relate
    from multigate.errors import MultigateError
    from multigate.experiment import read_experiment
    from multigate.report.related import write_relations
    from multigate.tables import relation_tables

    relations = run_relate(
        read_experiment(experiment, set_ or ()),
        out,
        structures=structures,
        pairs=None if pairs is None else read_pairs(pairs),
        seeds=seeds,
        train=train,
        device=device,
    )
    if json_:
        typer.echo(json.dumps(relations.to_dict(full=True), indent=1, ensure_ascii=False))
    else:
        _print(relation_tables(relations))
    try:
        typer.echo(f"\npage: {write_relations(relations, out / 'relations.html')}", err=json_)
    except MultigateError as error:
        typer.echo(f"\nno page: {error}", err=True)


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="A run, bundle or comparison folder.")],
    table: Annotated[str | None, typer.Option(help="Rows with labels; the run's validation rows if not given.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Tell why: who reads which expert, what experts serve, what each task's features are worth."""
    import json

    from multigate.analysis.inspection import inspect_model
    from multigate.analysis.subject import find_subject
    from multigate.tables import inspection_tables
    from multigate.training.progress import Reporter

    with Reporter() as report:
        inspection = inspect_model(find_subject(run, table), progress=report)
    if json_:
        typer.echo(json.dumps(inspection.to_dict(full=True), indent=1, ensure_ascii=False))
    else:
        _print(inspection_tables(inspection))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run or comparison folders.")],
    out: Annotated[Path, typer.Option(help="The page to write; .md for the model card of a run.")] = Path(
        "report.html"
    ),
    table: Annotated[str | None, typer.Option(help="Rows with labels; the runs' own if not given.")] = None,
) -> None:
    """Write one page about runs and comparisons: curves, metrics, calibration, gates, differences. It opens offline.

    With an --out that ends in .md it is one run's model card.
    """
    from multigate.errors import RunError
    from multigate.report.card import write_card
    from multigate.report.write import write_report
    from multigate.training.progress import Reporter

    if out.suffix == ".md":
        if len(runs) > 1 or table is not None:
            raise RunError(
                f"a model card is of one run and its own validation rows; name one run, and no --table, for {out}"
            )
        typer.echo(f"model card: {write_card(runs[0], out)}")
        return
    with Reporter() as progress:
        path = write_report(runs, out, table=table, progress=progress)
    typer.echo(f"report: {path}")


@app.command()
def doctor() -> None:
    """Tell what is installed, what computes, and what to install for the rest."""
    from multigate.doctor import doctor_tables

    _print(doctor_tables())


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="census-income or kuairand.")],
    from_: Annotated[Path | None, typer.Option("--from", help="A folder or file already downloaded.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write tables to.")] = Path("data"),
) -> None:
    """Get a public data set as Parquet files."""
    from multigate.datasets.fetch import fetch as run_fetch
    from multigate.training.progress import Reporter

    with Reporter() as report:
        folder = run_fetch(name, out, from_, report)
    typer.echo(f"{name}: {folder}")


@app.command()
def reproduce(
    study: Annotated[str, typer.Argument(help="synthetic, census, recommender, gates or serving.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of results, pictures and page, else runs/STUDY; called again it goes on."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small version, in minutes.")] = False,
    runs: Annotated[int | None, typer.Option(min=1, help="Runs of each setting, in place of the study's own.")] = None,
    data: Annotated[Path, typer.Option(help="Where fetch wrote the data sets.")] = Path("data"),
    set_: Set = None,
    device: Device = "auto",
) -> None:
    """Run an experiment of the MMoE paper again, beside what it printed."""
    from multigate.paper.account import printed
    from multigate.paper.reproduce import reproduce as run_study
    from multigate.training.progress import Reporter

    chapters = run_study(
        study,
        out or Path("runs") / (f"{study}-quick" if quick else study),
        quick=quick,
        runs=runs,
        changes=set_ or (),
        data=data,
        device=device,
        report=Reporter(),
    )
    _print(printed(chapters))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for its tables and runs.")] = Path("runs/demo"),
    rows: Annotated[int, typer.Option(min=2_000, help="Rows of the simulated feed.")] = 60_000,
) -> None:
    """The whole road on a simulated content feed, in a few minutes."""
    from multigate.demo import demo as run_demo

    run_demo(out, rows=rows)


def _print(renderable: object) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(renderable)


def _limit_threads() -> None:
    """Compute with no more threads than the container is given cores: OpenMP, which torch uses, knows of no quota."""
    from multigate.cores import usable_cores

    usable = usable_cores()
    if usable < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(usable))


def main() -> None:
    """Run the command line.

    Exit codes: 0 done; 2 something is wrong, told in one sentence; 130 stopped by Ctrl-C, SIGTERM or SIGHUP (the
    terminal was closed); 1 a fault of this program, or nobody reads what it prints.
    """
    from multigate.training.interrupts import handled

    _open_closed_streams()
    _limit_threads()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a terminal gets what it can show; a file or pipe UTF-8 whatever the locale, for experiments are read so
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            sys.stdout.reconfigure(encoding="utf-8")
    try:
        with handled(signal.default_int_handler):
            try:
                _check_paths(sys.argv[1:])
                app()
            finally:
                sys.stdout.flush()
    except SystemExit as ended:
        if ended.code == STOPPED:  # typer's word for a Ctrl-C that no verb answered
            typer.echo("stopped; nothing half-written is left, so run the same command again", err=True)
        if ended.code == 2 and (told := _command_meant(sys.argv[1:]) or _field_meant(sys.argv[1:])) is not None:
            typer.echo(told, err=True)
        raise
    except BaseException as error:
        code = _tell(error)
        try:
            sys.stdout.flush()
        except OSError:  # or Python would try again when it ends, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)


def _command_meant(words: Sequence[str]) -> str | None:
    """Which command does what one was taken to do that there is not."""
    first = next((word for word in words if not word.startswith("-")), "")
    told = OTHERS.get(first)
    return None if told is None else f"multigate {told}"


def _field_meant(words: Sequence[str]) -> str | None:
    """Where a field of the experiment is set that was given as an option of its own, as ``--epochs 3``, if one was."""
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    start = next((at for at, word in enumerate(words) if word in verbs), None)
    if start is None:
        return None
    options = {name for one in verbs[words[start]].params for name in one.opts}
    if "--set" not in options:
        return None
    for word, follows in zip_longest(words[start + 1 :], words[start + 2 :], fillvalue=""):
        name, _, value = word.partition("=")
        if name.startswith("--") and name not in options:
            if name == "--out":
                return f"{words[start]} writes to standard output; add > {value or follows or 'experiment.yaml'}"
            from multigate.experiment import Experiment

            key = name.removeprefix("--").replace("-", "_")
            place = (
                f"write --set {key}={value or follows}" if key in Experiment.model_fields else Experiment.place_of(key)
            )
            if place is not None:
                return f"fields of the experiment are set with --set; {place}"
    return None


def _check_paths(words: Sequence[str]) -> None:
    """Raise ``RunError`` where the working folder was removed: torch's libraries end the process there. And
    ``DataError`` where it or a word is no text: a training would end when it writes its bundle."""
    from multigate.errors import RunError, check_text

    try:
        check_text([*words, os.getcwd()])
    except FileNotFoundError:
        raise RunError("the folder that this command was started in was removed; cd to one that is there") from None


def _open_closed_streams() -> None:
    """Let what is printed go nowhere where nothing is open (``>&-``, ``pythonw``); in order, so that 0, 1 and 2 fit."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for as long as the process)


def _tell(error: BaseException) -> int:
    """Say what went wrong on standard error; returns the exit code."""
    from multigate.training.interrupts import Interrupted

    if isinstance(error, BrokenPipeError):
        return 1
    sentence = _sentence(error)
    if sentence is None or "--debug" in sys.argv:
        traceback.print_exception(error)
    if sentence is None:
        typer.echo("this is a fault of multigate: please report it, with the lines above and what you ran", err=True)
        return 1
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    typer.echo(sentence if stopped else f"error: {sentence}", err=True)
    return STOPPED if stopped else 2


def _sentence(error: BaseException) -> str | None:
    """What people can do something about, in one sentence; None for a fault of this program."""
    from multigate.errors import MultigateError, shortage
    from multigate.writing import reason

    arrow = sys.modules.get("pyarrow")  # not imported for the sake of an error
    text = " ".join(str(error).split())
    told: str | None = None
    match error:
        case MultigateError():
            told = text
        case KeyboardInterrupt():
            told = "stopped; run the same command again"
        case _ if (short := shortage(error)) is not None:
            told = short
        case OSError():
            told = f"{error.filename}: {reason(error)}" if error.filename else reason(error)
        case ImportError(name=str(name)) if name.partition(".")[0] != "multigate":
            told = f"the package {name.partition('.')[0]} is broken or incomplete ({text}); install it again"
        case _ if arrow is not None and isinstance(error, arrow.ArrowException):
            told = f"a table cannot be handled: {text}; write it again, or in another format"
    return told
