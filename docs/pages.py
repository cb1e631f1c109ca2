"""What the site adds to the folder `docs`: the repository's own pages, and links that lead from a page to any of them.

On the site every page lies where it lies in the repository, those of `docs` one folder higher. So a link that is right
in the repository is right on the site, once it has been resolved; what is no page there becomes plain text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "bench/README.md",
    "experiments/glue/README.md",
    "examples/sample-model/README.md",
)
"""Of the repository, beside `docs`."""
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's pages."""
    for page in PAGES:
        files.append(File.generated(config, page, content=(ROOT / page).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page, which are written for the repository, to pages of the site.

    Raises:
        FileNotFoundError: a link to what is not in the repository.
    """
    here = page.file.src_uri if page.file.src_uri in PAGES else f"docs/{page.file.src_uri}"

    def led(link: re.Match[str]) -> str:
        words, target, anchor = link.groups()
        if "://" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{here} links to {target}, which is not in the repository")
        there = path.removeprefix("docs/")
        if files.get_file_from_path(there) is None:
            return words
        return f"[{words}]({posixpath.relpath(there, posixpath.dirname(page.file.src_uri) or '.')}{anchor or ''})"

    return LINK.sub(led, markdown)
