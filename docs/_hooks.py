"""What the site's build does besides: the repository's own pages are part of it, and formulas are
MathML, which browsers draw by themselves."""

import html
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "models/README.md", "LICENSE", "examples/*")
RESULTS = ("experiments/**/*.md", "experiments/**/*.png", "experiments/**/requirements.txt")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add pages and images from outside `docs`, at the paths that they have in the repository."""
    for pattern in (*PAGES, *RESULTS):
        for path in sorted(REPOSITORY.glob(pattern)):
            name = path.relative_to(REPOSITORY).as_posix()
            if path.is_file() and "/out/" not in name:
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of `docs` in the repository lead to the same page of the site."""
    if page.file.generated_by is not None:
        return markdown
    return re.sub(r"(\]\(|src=\")\.\./(?=experiments/|models/|examples/|[A-Z])", r"\1", markdown)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Formulas as MathML; an example that was not put in is an error."""
    if re.search(r"-8 *&lt; *-", re.sub(r"<[^>]+>", "", content)):
        raise PluginError(f"{page.file.src_uri}: an example is not put in")

    def convert(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(match[2]).strip(), display=display)

    return _FORMULA.sub(convert, content)
