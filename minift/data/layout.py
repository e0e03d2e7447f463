"""How data is to be read: the flags that train, evaluate and predict share. A run remembers them."""

from dataclasses import dataclass, fields
from typing import ClassVar

from minift.flags import flag, spelled


@dataclass(frozen=True)
class Layout:
    """Of a table."""

    OF_FILES: ClassVar[tuple[str, ...]] = ()  # flags that say something of the files of a directory too

    format: str = flag("auto", "auto (by the extension), csv, tsv, jsonl, label-first (lines of `label text`), lines")
    header: str = flag(
        "auto", "yes, no, or auto: whether the first row holds a usual or a given name", choices=("auto", "yes", "no")
    )
    encoding: str = flag("utf-8", "of the data files, as in latin-1")
    delimiter: str | None = flag(None, "of a csv file: one character, or tab; unset: comma, semicolon or tab, by the first line")
    text_column: str | None = flag(None, "name, or number from 1; several are joined: title+description; unset: by the usual names")
    label_column: str | None = flag(None, "name, or number from 1; unset: by the usual names")
    label_part: str | None = flag(None, "keep what stands before this in a label: ':' makes NUM of NUM:dist")
    skip_unlabelled: bool = flag(False, "leave out rows without a label, counted; else the first one is an error")

    def described(self) -> list[str]:
        """The flags that were set to describe a table, of which a directory knows nothing."""
        return [f.name for f in fields(Layout) if f.name not in self.OF_FILES and getattr(self, f.name) != f.default]


@dataclass(frozen=True)
class TextLayout(Layout):
    OF_FILES: ClassVar = ("encoding", "label_part")

    pair_column: str | None = flag(None, "the second text of a pair: name, or number from 1; unset: by the usual names")


@dataclass(frozen=True)
class DocumentLayout(Layout):
    """Of running text, a table of texts, or a directory of text files."""

    OF_FILES: ClassVar = ("encoding",)

    documents: str = flag(
        "auto",
        "of plain text: lines, a document a line; blank-lines: blank lines separate them; file: one document; auto: blank-lines "
        "where there are any",
        choices=("auto", "lines", "blank-lines", "file"),
    )


@dataclass(frozen=True)
class ImageLayout(Layout):
    """A table of paths, or a directory."""

    skip_bad_images: bool = flag(False, "leave out images that cannot be read, counted; else they are listed and nothing starts")
    workers: int | None = flag(None, "processes that read images; unset: one for each core, at most 8", least=0)


LAYOUTS = (TextLayout, DocumentLayout, ImageLayout)


def not_for_directories(layout: Layout) -> list[str]:
    """What to tell of the flags that describe a table, where a directory is read."""
    tabular = ("format", "header", "delimiter", "text_column", "pair_column", "label_column", "skip_unlabelled")
    defaults = type(layout)()
    given = [name for name in tabular if getattr(layout, name, None) != getattr(defaults, name, None)]
    return [f"{', '.join(map(spelled, given))} does not apply to a directory"] if given else []
