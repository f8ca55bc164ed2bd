"""``docs/pictures``: who reads whom in every structure. ``python tests/report/pictures.py`` draws them anew."""

from pathlib import Path

from multigate.report.wiring import wiring_file
from multigate.sharing import STRUCTURES, VARIANTS, Structure

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
TASKS = ("click", "buy", "like")
FEW = 4
"""Experts of a kind at most."""
GROUPED = {"home": {"groups": (TASKS[:2], TASKS[2:])}}
"""Settings without which a picture would not show what its structure is about."""


def pictures() -> dict[str, str]:
    """The text of every picture by the name of its file."""
    structures = {name: kind() for name, kind in STRUCTURES.items()} | VARIANTS
    return {
        f"{name}.svg": wiring_file(with_few_experts(options).with_(**GROUPED.get(name, {})).build(2, TASKS).wiring)
        for name, options in structures.items()
    }


def with_few_experts(options: Structure) -> Structure:
    counts = {name: getattr(options, name) for name in type(options).model_fields if "experts" in name}
    return options.with_(**{name: min(count, FEW) for name, count in counts.items()})


def draw(folder: Path = FOLDER) -> None:
    """Write every picture, and remove those of structures that are no more."""
    folder.mkdir(exist_ok=True)
    wanted = pictures()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    for path in folder.glob("*.svg"):
        if path.name not in wanted:
            path.unlink()


if __name__ == "__main__":
    draw()
