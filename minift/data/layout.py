"""How data is to be read: the flags that train, evaluate and predict share. A run remembers them."""

from dataclasses import dataclass, fields

from minift.flags import flag


@dataclass(frozen=True)
class Layout:
    """Of a table."""

    format: str = flag("auto", "auto (by the extension), csv, tsv, jsonl, label-first (lines of `label text`), lines")
    header: str = flag(
        "auto", "yes, no, or auto: whether the first row holds a usual or a given name", choices=("auto", "yes", "no")
    )
    encoding: str = flag("utf-8", "of the data files, as in latin-1")
    text_column: str | None = flag(None, "name, or number from 1; unset: by the usual names")
    label_column: str | None = flag(None, "name, or number from 1; unset: by the usual names")
    label_part: str | None = flag(None, "keep what stands before this in a label: ':' makes NUM of NUM:dist")

    def for_tables(self) -> list[str]:
        """The flags that were set and say nothing of a directory."""
        return [f.name for f in fields(Layout) if getattr(self, f.name) != f.default]


@dataclass(frozen=True)
class TextLayout(Layout):
    pair_column: str | None = flag(None, "the second text of a pair: name, or number from 1; unset: by the usual names")


@dataclass(frozen=True)
class ImageLayout(Layout):
    """A table of paths, or a directory."""

    skip_bad_images: bool = flag(False, "leave out images that cannot be read, counted; else they are listed and nothing starts")
    workers: int | None = flag(None, "processes that read images; unset: one for each core, at most 8", least=0)
