"""`steelyard new`: a client project to start from."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ClientError
from .options import YES, Json, leave, new_app, tell

app = new_app("Make a client project to start from.")
TEMPLATES = ("numpy", "torch", "flower")


@app.command()
def make(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY")],
    template: Annotated[str, typer.Option("--template", help="numpy, torch or flower")] = "numpy",
    json: Json = False,
) -> None:
    """Make a client project: `client.py` with train and evaluate, and `task.toml`."""
    if template not in TEMPLATES:
        raise ClientError("template_unknown", f"templates are {', '.join(TEMPLATES)}")
    if directory.exists() and any(directory.iterdir()):
        raise ClientError("project_exists", f"{directory} is not empty; choose a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    source = files("steelyard.client") / "templates"
    made = {"client.py": f"{template}_client.py.txt", "task.toml": "task.toml.txt"}
    for name, template_name in made.items():
        (directory / name).write_text((source / template_name).read_text("utf-8"), "utf-8")
    text = "\n".join(
        [
            *(f"{directory / name}" for name in made),
            f"cd {directory}",
            "steelyard keys new site.key      # your account; somebody must fund it",
            "python client.py                 # to publish a task: writes its first model",
            "steelyard client dry-run TASK    # to take part: trains once, sends nothing",
        ]
    )
    tell({"directory": directory, "files": sorted(made)}, text, json)
    leave(YES)
