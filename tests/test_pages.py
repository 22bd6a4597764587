"""The pages: their links lead somewhere, their commands are commands, and all names are in them."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY

import jclnf
from jclnf.cli._commands import COMMANDS
from jclnf.cli._main import parser
from jclnf.cli._options import join_numbers

PAGES = [
    *(REPOSITORY / "docs").rglob("*.md"),
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md")),
]


def commands() -> list[str]:
    """The command lines in blocks and in cells of tables."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            found += [line for line in block.splitlines() if line.startswith("jclnf ")]
        found += re.findall(r"\| `(jclnf [^`]+)` \|", text)
    return [line.partition("  #")[0].strip() for line in found]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_in_the_pages_are_commands(command):
    words = join_numbers(shlex.split(command)[1:], [declared for declared, _ in COMMANDS.values()])
    assert callable(parser().parse_args(words).declared)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        there = [page.parent / target]
        if page.parent.name == "docs" and target.endswith(".md"):
            there.append(REPOSITORY / target)
        assert any(path.exists() for path in there), target


def test_all_public_names_are_in_the_pages():
    """The rooms whole, what is directly in `jclnf` name by name."""
    pages = (REPOSITORY / "docs" / "api").glob("*.md")
    documented = set(re.findall(r"^::: (\S+)$", "".join(p.read_text() for p in pages), re.M))
    public = {f"jclnf.{name}" for name in jclnf.__all__} - {"jclnf.__version__"}
    assert public <= documented
    for name in documented:
        room, *rest = name.split(".")[1:]
        what = getattr(jclnf, room, None)
        assert what is not None or Path(jclnf.__file__).with_name(room).is_dir(), name
        assert not rest or room == "video"
