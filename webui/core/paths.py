"""Where things lie on disk: the folders that every room is given, and the one check that a path stays inside its root.

Folders are plain values. Creating them and checking that they can be used is done once, by `webui.bootstrap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """The folders of one installation, as absolute paths; build it with `Folders.at` unless all five are known."""

    root: Path
    models: Path
    outputs: Path
    data: Path
    extensions: Path

    @classmethod
    def at(
        cls,
        root: Path = REPOSITORY,
        *,
        models: Path | None = None,
        outputs: Path | None = None,
        data: Path | None = None,
        extensions: Path | None = None,
    ) -> Folders:
        """The usual folders below `root`, each replaced where another one is given; nothing is created."""
        root = root.expanduser().resolve()

        def choose(given: Path | None, name: str) -> Path:
            return given.expanduser().resolve() if given is not None else root / name

        return cls(
            root=root,
            models=choose(models, "models"),
            outputs=choose(outputs, "outputs"),
            data=choose(data, "data"),
            extensions=choose(extensions, "extensions"),
        )

    @property
    def settings_file(self) -> Path:
        """The one file that settings are kept in."""
        return self.data / "settings.json"

    @property
    def database(self) -> Path:
        """The SQLite file of jobs and pictures."""
        return self.data / "atelier.sqlite3"

    @property
    def conversions(self) -> Path:
        """Where pickled models are kept as the safetensors that they were converted to."""
        return self.data / "conversions"

    @property
    def attention_choices(self) -> Path:
        """Which attention kernel was fastest here, as it was last measured."""
        return self.data / "attention.json"

    @property
    def page_cache(self) -> Path:
        """Where uploads and pictures shown on the page lie."""
        return self.data / "page-cache"


def is_within(root: Path, path: Path) -> bool:
    """Whether `path`, once links and `..` are resolved, is `root` or lies below it."""
    return path.resolve().is_relative_to(root.resolve())
