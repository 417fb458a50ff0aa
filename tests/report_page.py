"""What the tests of the report share: its page as a browser would find it, and copies of its study."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hcs_ray.report import build
from hcs_ray.report.material import Material, gather
from hcs_ray.report.standing import stand
from hcs_ray.study import Study, open_study
from tests.report_study import quiet


def copy_study(folder: Path, to: Path) -> Study:
    """A copy of a study into a folder that is there, to be written to."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return open_study(str(to))


def report_of(study: Study) -> str:
    """The page of a study's report, made where it is not there."""
    build.report(study, quiet)
    return study.storage.read(f"reports/{study.name}/index.html").decode()


def context(study: Study) -> dict[str, Any]:
    """What the template shows."""
    return build.context(study, study.claim("report"), quiet).values


def material_of(study: Study) -> Material:
    """What the report is made of."""
    return gather(study, stand(study, study.claim("report")))


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = self._hidden and tag not in ("script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]
