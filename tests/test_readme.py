"""Every block of the README runs, in order, in one folder, as a reader would type it."""

import re
import shlex
import subprocess
from pathlib import Path

import processes

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_runs(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} == {"python", "bash", "text"}
    for language, text in blocks:
        if language == "python":
            done = processes.run_program(text, tmp_path)
            assert done.code == 0, f"{text}\n{done.told}"
        elif language == "bash":
            for line in text.strip().splitlines():
                run_typed(line, tmp_path)
    assert (tmp_path / "predictions.parquet").is_file()


def run_typed(line: str, folder: Path) -> None:
    """A multigate command, with its output redirected where the line says so."""
    command, _, target = line.partition(" > ")
    words = shlex.split(command)
    assert words[0] == "multigate", line
    done = processes.run(words[1:], folder)
    assert done.code == 0, f"{line}\n{done.said}\n{done.told}"
    if target:
        (folder / target).write_text(done.said)


def test_the_file_tree_names_what_is_there() -> None:
    tree = next(text for language, text in BLOCK.findall((ROOT / "README.md").read_text()) if language == "text")
    named = set(re.findall(r"[\w./]+\.(?:py|md|yaml|toml|cff)", tree))
    there = {
        path.relative_to(ROOT / "src" / "multigate").as_posix() for path in (ROOT / "src" / "multigate").rglob("*.py")
    }
    modules = {path for path in there if not path.endswith("__init__.py")}
    missing = {path for path in modules if path not in named and path.rpartition("/")[2] not in named}
    assert not missing, f"the README's file tree lacks {sorted(missing)}"


def test_the_chinese_readme_is_in_step() -> None:
    """Its code is the same, its file tree names the same files, and so are its sections, links and figures."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")]
    one, other = ([(language, text) for language, text in BLOCK.findall(text) if language != "text"] for text in texts)
    assert one == other
    trees = [next(block for language, block in BLOCK.findall(text) if language == "text") for text in texts]
    here, there = (re.findall(r"[\w./]+\.(?:py|md|yaml)", tree) for tree in trees)
    assert here == there
    prose = [BLOCK.sub("", text) for text in texts]
    for pattern in (r"^#+ ", r"^- \*\*", r"^\|"):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in prose]
        assert counts[0] == counts[1], pattern
    links = [sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh-CN.md"}) for text in prose]
    assert links[0] == links[1]
    figures = [
        sorted(re.findall(r"\d*\.?\d+(?:,\d{3})*", "".join(re.findall(r"^\|.*$", text, re.MULTILINE))))
        for text in prose
    ]
    assert figures[0] == figures[1]


def test_make_targets_named_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)`", text)):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"make {target}: {done.stderr}"
