"""What runs have recorded, as one page: `python -m minift.report RUN [RUN ...]`. The page is made by minift/page.py."""

import importlib.util
from pathlib import Path

from minift.errors import UserError, command
from minift.flags import Parser
from minift.outputs import check_out
from minift.tables import counted


def main(argv: list[str]) -> None:
    parser = Parser("python -m minift.report", "Write what finished runs have recorded into one page, report.html.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of a run, or of the runs of --seeds")
    parser.add_argument("--out", metavar="FILE", help="unset: report.html, in the run, or beside several")
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="rows of the largest loss, scored again; 0: none (10)")
    parser.add_argument("--device", help="on which they are scored: cpu, cuda, ... (default: cuda where there is one)")
    arguments = parser.parse(argv)
    check_out(arguments.out)
    if arguments.worst < 0:
        raise UserError(f"--worst {arguments.worst}: expected 0 or more")

    from minift import page
    from minift.pretrained import whole_file

    runs = page.find_runs(arguments.runs)
    found = page.sections(runs, arguments.worst, arguments.device)
    first = Path(arguments.runs[0])
    if importlib.util.find_spec("matplotlib") is None:
        if arguments.out:
            raise UserError(f"--out {arguments.out}: a page needs matplotlib, for its charts: pip install 'minift[plot]'")
        print(page.as_text(found))
        print("\nnote: matplotlib, of the extra `plot`, is not installed; with it this is a page: pip install 'minift[plot]'")
        return
    out = Path(arguments.out or (first if len(arguments.runs) == 1 else first.resolve().parent) / "report.html")
    title = first.resolve().name if len(arguments.runs) == 1 else counted(len(runs), "run")
    with whole_file(out) as fresh:
        fresh.write_text(page.as_html(f"minift: {title}", found), encoding="utf-8", errors="backslashreplace")
    print(out)


if __name__ == "__main__":
    command(main, "report")
