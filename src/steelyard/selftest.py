"""`steelyard selftest`: does this machine compute what the network computes?

The known answers are `chain/selftest`'s, which a node checks at each start. Exit codes: 0, or 1 if
one is wrong.
"""

import json
from typing import Annotated

import typer

from .chain.selftest import load_cases, run

YES, NO = 0, 1

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def selftest(
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one line of JSON.")] = False,
) -> None:
    """Aggregate the known cases and compare bit for bit: 0 all equal, 1 this machine is wrong."""
    cases = load_cases()
    failures = run(cases)
    if as_json:
        typer.echo(json.dumps({"passed": not failures, "cases": len(cases), "failures": failures}))
    else:
        for failure in failures:
            typer.echo(failure)
        typer.echo(
            f"{len(cases)} cases: "
            + ("wrong; install the versions of constraints.txt" if failures else "all as expected")
        )
    raise typer.Exit(NO if failures else YES)
