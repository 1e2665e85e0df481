"""Faults of the operator's own code: in one line what it was and where; all of it in a file.

A traceback goes through this program, the operator's file and numpy. What the operator can mend is
the innermost line of its own.
"""

import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import steelyard.chain

MAX_WORDS: Final = 300
"""Characters of an exception's own words in one line."""
TRACEBACK_NAME: Final = "traceback.txt"
"""In the journal's directory, which its owner alone can read: exceptions may quote rows."""
THIS_PROGRAM: Final = (
    *(Path(place).resolve() for place in steelyard.chain.__path__),
    Path(__file__).resolve().parent,
)
PYTHON: Final = tuple(
    Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
"""Directories of what is installed, wherever they are."""
FROZEN: Final = ("<frozen ", "<__array_function__")
"""How Python and numpy name lines that are in no file."""


def describe_fault(error: BaseException, directory: Path | None = None) -> str:
    """Return an exception of the operator's code and its place in that, in one line.

    With `directory`, the whole traceback is kept there and the line names the file.
    """
    said = (error.msg if isinstance(error, SyntaxError) else "") or str(error)
    words = " ".join(said.split())
    kind = type(error).__name__
    told = f"{kind}: {words}" if words else kind
    if len(told) > MAX_WORDS:
        told = told[:MAX_WORDS] + "…"
    place = find_place(error)
    kept = None if directory is None else keep_traceback(error, directory)
    return told + place + ("" if kept is None else f"; the whole traceback is in {kept}")


def find_place(error: BaseException) -> str:
    """Return where in the operator's own files it happened; nothing if only in this program."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {shorten(error.filename)}, line {error.lineno}"
    frames = [
        one
        for one in traceback.extract_tb(error.__traceback__)
        if not one.filename.startswith(FROZEN) and not is_below(one.filename, THIS_PROGRAM)
    ]
    if not frames:
        return ""
    own = [one for one in frames if not is_library(one.filename)]
    last = own[-1] if own else frames[0]  # the operator's code may be installed, too
    inside = "" if last.name.startswith("<") else f", in {last.name}"
    return f" in {shorten(last.filename)}, line {last.lineno}{inside}"


def is_library(filename: str) -> bool:
    """Whether a file is Python's own, or was installed."""
    return is_below(filename, PYTHON) or not INSTALLED.isdisjoint(Path(filename).parts)


def is_below(filename: str, places: Sequence[Path]) -> bool:
    """Whether a file is in one of these directories."""
    path = Path(filename).resolve()
    return any(path.is_relative_to(place) for place in places)


def shorten(filename: str) -> str:
    """Return a path from here, if it is below."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def keep_traceback(error: BaseException, directory: Path) -> Path | None:
    """Write the whole traceback in place of the last one; None where nothing can be written."""
    path = directory / TRACEBACK_NAME
    try:
        path.write_text("".join(traceback.format_exception(error)), "utf-8", "backslashreplace")
    except OSError:
        return None
    return path
