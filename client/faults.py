"""Faults of the operator's own code: in one line what it was and where; all of it in a file.

A traceback goes through this program, the operator's file and numpy. What the operator can mend is
the innermost line of its own.
"""

import sysconfig
import traceback
from pathlib import Path
from typing import Final

import steelyard.chain

MAX_WORDS: Final = 300
"""Characters of an exception's own words in one line."""
TRACEBACK_NAME: Final = "traceback.txt"
"""In the journal's directory, which its owner alone can read: exceptions may quote rows."""
LIBRARIES: Final = ("stdlib", "platstdlib", "purelib", "platlib")
FOREIGN: Final = (
    *(Path(sysconfig.get_path(name)).resolve() for name in LIBRARIES),
    *(Path(place).resolve() for place in steelyard.chain.__path__),
    Path(__file__).resolve().parent,
)
"""Below these lies what the operator did not write: Python, what is installed, this program."""
FROZEN: Final = ("<frozen ", "<__array_function__")
"""How Python and numpy name lines that are in no file."""


def describe_fault(error: BaseException, directory: Path | None = None) -> str:
    """Return an exception of the operator's code and its place in that, in one line.

    With `directory`, the whole traceback is kept there and the line names the file.
    """
    words = " ".join(str(error).split())
    kind = type(error).__name__
    told = f"{kind}: {words}" if words else kind
    if len(told) > MAX_WORDS:
        told = told[:MAX_WORDS] + "…"
    place = find_place(error)
    kept = None if directory is None else keep_traceback(error, directory)
    return told + place + ("" if kept is None else f"; the whole traceback is in {kept}")


def find_place(error: BaseException) -> str:
    """Return where in the operator's own files it happened; nothing if in none of them."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {shorten(error.filename)}, line {error.lineno}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if is_own(one.filename)]
    if not frames:
        return ""
    last = frames[-1]
    inside = "" if last.name.startswith("<") else f", in {last.name}"
    return f" in {shorten(last.filename)}, line {last.lineno}{inside}"


def is_own(filename: str) -> bool:
    """Whether a line is the operator's: neither Python's, nor installed, nor of this program."""
    if filename.startswith(FROZEN):
        return False
    path = Path(filename).resolve()
    return not any(path.is_relative_to(place) for place in FOREIGN)


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
