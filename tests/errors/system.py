"""Files, folders and processes that are not as they should be."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import good
from case import Case, Make

YAML = "Experiment files"
RUNS = "Run folders"
BUNDLES = "Bundles"
SERVING = "Serving"
PREDICTIONS = "Files of predictions"

TEXT = """schema:
  features: [{name: price, kind: number}]
  tasks: [{name: click}]
train: rows.parquet
"""
TRAIN = ["train", "x.yaml"]


def yaml(content: str | bytes, words: Sequence[str] = TRAIN) -> Make:
    """An experiment file of this content, met by ``train``."""

    def make(folder: Path) -> list[str]:
        (folder / "x.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        return list(words)

    return make


def trained(break_it: Callable[[Path], object], *words: str) -> Make:
    """A finished run in ``run``, broken, and met by these words."""

    def make(folder: Path) -> list[str]:
        good.trained(folder)
        break_it(folder)
        return list(words)

    return make


def stopped(folder: Path) -> None:
    """A run stopped at the first step of its first epoch."""
    from multigate.training.fit import Fit
    from multigate.training.interrupts import Interrupted
    from multigate.training.train import train

    def step(fitting: Fit, batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return whole(fitting, batch)

    good.table(folder / "rows.parquet")
    whole = Fit.step
    with patch.object(Fit, "step", step), suppress(Interrupted):
        train(good.experiment(), folder / "run", quiet=True, device="cpu")


def unfinished(break_it: Callable[[Path], object], *words: str) -> Make:
    """A run stopped in its first epoch, broken, and gone on with."""

    def make(folder: Path) -> list[str]:
        stopped(folder)
        break_it(folder)
        return ["train", *words, "--resume", "--out", "run", "--device", "cpu"]

    return make


def rewritten(path: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """JSON in a folder, changed."""

    def rewrite(folder: Path) -> None:
        held = change(json.loads((folder / path).read_text()))
        if isinstance(held, dict):
            held.pop("checksum", None)  # or no more would be told than that it was changed
        (folder / path).write_text(json.dumps(held))

    return rewrite


def bundled(name: str, change: Callable[[bytes], bytes]) -> Make:
    """A file of the bundle changed, with a checksum that fits, met by ``score``."""

    def break_it(folder: Path) -> None:
        file, about = folder / "run/bundle" / name, folder / "run/bundle/bundle.json"
        file.write_bytes(change(file.read_bytes()))
        held = json.loads(about.read_text())
        del held["checksum"]
        held["files"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        about.write_text(json.dumps(held))

    return trained(break_it, *SCORE)


def about(change: Callable[[Any], Any]) -> Make:
    return trained(rewritten("run/bundle/bundle.json", change), *SCORE)


def loaded(engine: str) -> Make:
    """A bundle loaded from Python with an engine."""

    def make(folder: Path) -> Callable[[], object]:
        from multigate.bundle import load

        good.trained(folder)
        return lambda: load("run", engine=engine)  # type: ignore[arg-type]

    return make


def torn(path: str, kept: int = 24) -> Callable[[Path], None]:
    def tear(folder: Path) -> None:
        os.truncate(folder / path, kept)

    return tear


def moved(folder: Path) -> None:
    (folder / "run/bundle").rename(folder / "run/elsewhere")


def compared(folder: Path, made: str = "runs") -> None:
    (folder / "run" / made).mkdir()
    emptied(folder)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder / "run/bundle")
    for name in ("summary.json", "metrics.jsonl"):
        (folder / "run" / name).unlink()


def related(folder: Path) -> None:
    compared(folder, "trainings")


def flipped(path: str) -> Callable[[Path], None]:
    """The last byte of a file, another by one bit."""

    def flip(folder: Path) -> None:
        content = bytearray((folder / path).read_bytes())
        content[-1] ^= 1
        (folder / path).write_bytes(content)

    return flip


def tuned(folder: Path) -> None:
    (folder / "run/trials.db").touch()
    emptied(folder)


def trying(*tries: str) -> Make:
    """``tune`` of an experiment with values of these fields."""
    return yaml(TEXT, ["tune", "x.yaml", *(word for one in tries for word in ("--try", one))])


def climbing(folder: Path) -> None:
    (folder / "run/bundle/model.safetensors").rename(folder / "outside")
    os.symlink(folder / "outside", folder / "run/bundle/model.safetensors")


def occupied(words: Sequence[str], file: str = "out/thesis.tex") -> Make:
    """A file where a run should go."""

    def make(folder: Path) -> list[str]:
        good.table(folder / "rows.parquet")
        (folder / "x.yaml").write_text(TEXT)
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("something dear")
        return list(words)

    return make


def edited(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def named_like_words(folder: Path) -> list[str]:
    columns = good.columns()
    good.table(folder / "rows.parquet", on=columns["price"], no=columns["colour"], **{"007": columns["price"]})
    text = TEXT.replace("{name: price, kind: number}", "{name: on, kind: number}, {name: no, kind: category}")
    (folder / "x.yaml").write_text(text + "epochs: 1\nbatch_size: 64\nsharing: {experts: 2, hidden: [4]}\n")
    return [*TRAIN, "--out", "run", "--device", "cpu", "--set", "schema.keys=[007]"]


SCORE = ["score", "run", "rows.parquet"]
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)

SYSTEM: list[Case] = [
    Case(YAML, "there is none", lambda folder: TRAIN, ("x.yaml", "No such file")),
    Case(YAML, "a folder", lambda folder: ["train", "."], ("Is a directory",)),
    Case(YAML, "empty", yaml(""), ("x.yaml is empty", "multigate init")),
    Case(YAML, "a CSV file in its place", lambda folder: ["train", good.table(folder / "rows.csv").name],
         ("rows.csv is a table, no experiment", "multigate init rows.csv --set tasks=")),
    Case(YAML, "a table in its place", yaml(b"PAR1\0\x15\x04"), ("x.yaml is a binary file", "multigate init")),
    Case(YAML, "UTF-16", yaml(TEXT.encode("utf-16")), ("UTF-16",)),
    Case(YAML, "Latin-1", yaml(TEXT.replace("price", "größe").encode("latin-1")), ("line 2", "UTF-8")),
    Case(YAML, "larger than any experiment", yaml(b"#" * (17 << 20)), ("larger than 16 MB",)),
    Case(YAML, "a bracket that is not closed", yaml(TEXT.replace("]", "", 1)), ("x.yaml, line 3", "not valid YAML")),
    Case(YAML, "a tab", yaml(TEXT.replace("  tasks", "\ttasks")), ("line 3", "tab")),
    Case(YAML, "a list on top", yaml("- a\n- b\n"), ("x.yaml", "found list")),
    Case(YAML, "a key given twice", yaml(TEXT + "train: more.parquet\n"), ("line 5", "'train'", "second time")),
    Case(YAML, "two documents", yaml(TEXT + "---\n" + TEXT), ("line 5", "second document")),
    Case(YAML, "a tag that would run a program", yaml("train: !!python/object/apply:os.system [ls]\n"),
         ("line 1", "!!python/object/apply:os.system")),
    Case(YAML, "aliases that multiply to billions", yaml(BOMB), ("x.yaml, line", "aliases multiply")),
    Case(YAML, "brackets without end", yaml("a: " + "[" * 10_000), ("line 1", "nested")),
    Case(YAML, "an unknown key", yaml(TEXT + "trian: more.parquet\n"), ("'trian'", "did you mean 'train'?")),
    Case(YAML, "a number where a name should be", yaml(TEXT.replace("click", "7")), ("tasks.0.name", "quotes")),
    Case(YAML, "a learning rate without end", yaml(TEXT + "optimizer: {learning_rate: inf}\n"),
         ("optimizer.learning_rate", "finite")),
    Case(YAML, "a seed of more than 64 bits", yaml(TEXT + f"seed: {2**64}\n"), ("seed: Input should be less than",)),
    Case(YAML, "true where a whole number should be", yaml(TEXT + "epochs: true\n"),
         ("epochs: ", "integer (found True)")),
    Case(YAML, "a structure that is a list", yaml(TEXT + "sharing: {structure: [mmoe]}\n"), ("structure", "'mmoe'")),
    Case(YAML, "steps that are no tasks", yaml(TEXT + "sharing: {structure: aitm, order: [clik]}\n"),
         ("'clik'", "did you mean 'click'?")),
    Case(YAML, "a task in no group", yaml(TEXT + "sharing: {structure: home, groups: [[buy]]}\n"),
         ("'buy'", "'click'")),
    Case(YAML, "gates that read one expert alone", yaml(TEXT + "sharing: {structure: mmoe, gating: top_k, k: 1}\n"),
         ("k=1", "set k to 2 or more")),
    Case(YAML, "more levels than layers", yaml(TEXT + "sharing: {structure: ple, levels: 4}\n"),
         ("4 levels", "hidden")),
    Case(YAML, "own tables for one network", yaml(TEXT + "sharing: shared_bottom\nembedding: {tables: own}\n"),
         ("'shared_bottom'", "single_task")),
    Case(YAML, "a balance there is not", yaml(TEXT + "balance: pcgard\n"), ("'pcgard'", "did you mean 'pcgrad'?")),
    Case(YAML, "an output of what is not predicted",
         yaml(TEXT.replace("schema:", "schema:\n  outputs: [{name: rank, expression: clik * price}]", 1)),
         ("output 'rank'", "'clik'", "did you mean 'click'?")),
    Case(YAML, "an output that is no arithmetic",
         yaml(TEXT.replace("schema:", "schema:\n  outputs: [{name: rank, expression: \"open('x')\"}]", 1)),
         ("output 'rank'", "\"open('x')\" is none of names")),
    Case(YAML, "a field to try that there is not", trying("sharing.expert=2..16"), ("did you mean 'experts'?",)),
    Case(YAML, "a value to try that cannot be", trying("embedding.dropout=0..1.5"), ("dropout=1.5", "less than 1")),
    Case(YAML, "a structure to try that there is not", trying("sharing=mmoe,pel"), ("did you mean 'ple'?",)),
    Case(YAML, "one value to try", trying("epochs=8"), ("nothing to choose from", "two or more")),
    Case(YAML, "what all trials share, to try", trying("split.valid=0.1..0.3"), ("split.valid", "encoded once")),
    Case(YAML, "a range that is none, to try", trying("epochs=few..many"), ("between two numbers",)),
    Case(YAML, "columns named on, no and 007",
         named_like_words, ("click",), 0, "they are read as they are written, without quotes"),

    Case(RUNS, "of something else", occupied([*TRAIN, "--out", "out"]), ("out", "not empty", "another folder")),
    Case(RUNS, "the folder of the tables", occupied([*TRAIN, "--out", "."]), ("not empty", "another folder")),
    Case(RUNS, "a file", occupied([*TRAIN, "--out", "out/thesis.tex"]), ("thesis.tex is a file",)),
    Case(RUNS, "below a file", occupied([*TRAIN, "--out", "out/thesis.tex/run"]), ("cannot write", "Not a directory")),
    Case(RUNS, "a name that is not UTF-8", occupied([*TRAIN, "--out", "caf\udce9"]),
         (r"'caf\udce9'", "not UTF-8", "another name")),
    Case(RUNS, "there already", trained(lambda folder: None, *TRAIN, "--out", "run"), ("holds a run", "--resume")),
    Case(RUNS, "started with another experiment",
         unfinished(lambda folder: None, "run/experiment.yaml", "--set", "epochs=9"),
         ("another experiment", "epochs: 1, now 9")),
    Case(RUNS, "a comparison there", trained(compared, *TRAIN, "--out", "run"), ("holds a comparison",)),
    Case(RUNS, "one run there, a comparison wanted", trained(lambda folder: None, "compare", "x.yaml", "--out", "run"),
         ("holds one run",)),
    Case(RUNS, "one run there, trials wanted", trained(lambda folder: None, "tune", "x.yaml", "--out", "run"),
         ("holds one run",)),
    Case(RUNS, "trials there", trained(tuned, *TRAIN, "--out", "run"), ("holds trials", "multigate tune")),
    Case(RUNS, "nothing to go on with", lambda folder: ["train", "--resume", "--out", "run"],
         ("there is no run in run",)),
    Case(RUNS, "its experiment.yaml edited by hand",
         unfinished(lambda folder: edited(folder / "run/experiment.yaml", "epochs: 1", "epochs: 5")),
         ("experiment changed", "epochs: 1, now 5")),
    Case(RUNS, "its experiment.yaml torn", unfinished(torn("run/experiment.yaml", 34)), ("run/experiment.yaml",)),
    Case(RUNS, "its checkpoint torn", unfinished(torn("run/checkpoint.safetensors")), ("checkpoint", "cannot be read")),
    Case(RUNS, "a bit of its checkpoint flipped", unfinished(flipped("run/checkpoint.safetensors")),
         ("checkpoint", "not what was written", "delete it")),
    Case(RUNS, "its prepared rows torn", unfinished(torn("run/prepared/train-00000.safetensors")),
         ("train-00000.safetensors", "delete")),
    Case(RUNS, "its prepared rows without their encoder",
         unfinished(lambda folder: (folder / "run/prepared/encoder/encoder.json").write_text("{}")),
         ("run/prepared", "delete the folder")),
    Case(RUNS, "its prepared rows without their list", unfinished(torn("run/prepared/manifest.json")),
         ("manifest.json", "delete the folder")),
    Case(RUNS, "a digit in their list altered",
         unfinished(lambda folder: edited(folder / "run/prepared/manifest.json", "184", "164")),
         ("manifest.json", "not what was written", "delete the folder")),
    Case(RUNS, "its table changed in between", unfinished(lambda folder: good.table(folder / "rows.parquet", 190)),
         ("tables changed",)),
    Case(RUNS, "its summary torn",
         trained(torn("run/summary.json"), "train", "--resume", "--out", "run"), ("summary.json is damaged",)),
    Case(RUNS, "its summary edited by hand",
         trained(rewritten("run/summary.json", lambda one: one | {"rows": None}), "report", "run"),
         ("summary.json (without rows) is damaged", "delete it and train again")),
    Case(RUNS, "scored without rows", trained(lambda folder: None, "score", "run"), ("name a table", "--part test")),
    Case(RUNS, "a model card of several", trained(lambda folder: None, "report", "run", "run", "--out", "card.md"),
         ("a model card is of one run", "card.md")),
    Case(RUNS, "scored on a part there is not", trained(lambda folder: None, "score", "run", "--part", "tset"),
         ("no tset rows", "valid")),

    Case(BUNDLES, "there is none", lambda folder: ["score", "run", "rows.parquet"], ("there is no folder run",)),
    Case(BUNDLES, "a folder of something else",
         lambda folder: (folder / "x").mkdir() or ["score", "x", "y"], ("x is no bundle",)),
    Case(BUNDLES, "a run that did not finish",
         lambda folder: stopped(folder) or SCORE, ("did not finish", "--resume --out run")),
    Case(BUNDLES, "a run whose bundle is gone", trained(lambda folder: shutil.rmtree(folder / "run/bundle"), *SCORE),
         ("bundle of the run in run is gone", "--resume --out run")),
    Case(BUNDLES, "a comparison", trained(compared, *SCORE), ("holds a comparison", "multigate report")),
    Case(BUNDLES, "related tasks", trained(related, *SCORE), ("holds related tasks", "multigate relate")),
    Case(BUNDLES, "trials", trained(tuned, *SCORE), ("holds trials", "multigate train run/best.yaml")),
    Case(BUNDLES, "a file missing",
         trained(lambda folder: (folder / "run/bundle/model.safetensors").unlink(), *SCORE), ("lacks its file",)),
    Case(BUNDLES, "a file altered", trained(torn("run/bundle/model.safetensors"), *SCORE), ("altered or damaged",)),
    Case(BUNDLES, "a file that is a link to elsewhere", trained(climbing, *SCORE), ("lacks its file",)),
    Case(BUNDLES, "a file beside it asked for",
         about(lambda held: held | {"files": held["files"] | {"../../x.yaml": "0"}}), ("'../../x.yaml'",)),
    Case(BUNDLES, "bundle.json torn", trained(torn("run/bundle/bundle.json"), *SCORE), ("bundle.json cannot be read",)),
    Case(BUNDLES, "a digit of bundle.json altered",
         trained(lambda folder: edited(folder / "run/bundle/bundle.json", '"exclusive": 0', '"exclusive": 1'), *SCORE),
         ("'bundle.json' was altered or damaged",)),
    Case(BUNDLES, "bundle.json is a list", about(lambda held: [held]), ("bundle.json cannot be read",)),
    Case(BUNDLES, "bundle.json without files", about(lambda held: held | {"files": {}}),
         ("lacks its experiment or files",)),
    Case(BUNDLES, "of a newer version", about(lambda held: {"format": 99}), ("format 99", "install a newer one")),
    Case(BUNDLES, "weights of another model",
         about(lambda held: held | {"experiment": held["experiment"] | {"tower": {"hidden": [3]}}}),
         ("weights do not fit",)),
    Case(BUNDLES, "weights that are no numbers",
         bundled("model.safetensors", lambda held: held[:-4] + b"\0\0\xc0\x7f"), ("not all finite", "train again")),
    Case(BUNDLES, "an encoder of nothing",
         bundled("encoder/encoder.json", lambda _: b"{}"), ("does not fit together",)),
    Case(BUNDLES, "a vocabulary of nothing",
         bundled("encoder/vocabularies.parquet", lambda _: b"PAR1"), ("does not fit together",)),
    Case(BUNDLES, "loaded with engine 'onnx', not exported", loaded("onnx"), ("has no graph", "Bundle.export")),
    Case(BUNDLES, "loaded with an engine that is none", loaded("onyx"), ("did you mean 'onnx'?",)),

    Case(SERVING, "two models of one name", lambda folder: ["serve", "a/run", "b/run"],
         ("two models would be named 'run'", "NAME=b/run")),
    Case(SERVING, "a run that is not there", lambda folder: ["serve", "run", "--port", "0"], ("no folder run",)),
    Case(SERVING, "at an address that is not this machine's",
         lambda folder: ["serve", "run", "--host", "192.0.2.1"], ("at port 8080 of '192.0.2.1'", "another --port")),

    Case(PREDICTIONS, "not Parquet", trained(lambda folder: None, *SCORE, "--out", "p.csv"), ("p.parquet",)),
    Case(PREDICTIONS, "a folder",
         trained(lambda folder: (folder / "p.parquet").mkdir(), *SCORE, "--out", "p.parquet"), ("is a folder",)),
    Case(PREDICTIONS, "below a file",
         trained(lambda folder: None, *SCORE, "--out", "x.yaml/p.parquet"), ("cannot write", "Not a directory")),
    Case(PREDICTIONS, "the table itself", trained(lambda folder: None, *SCORE, "--out", "rows.parquet"),
         ("among the rows to predict",)),
]  # fmt: skip
