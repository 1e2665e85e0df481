"""Whether the chain keeps a task's model until its first round is closed.

`publish` refuses a task whose model may expire before ("model expires too soon"), and as it carries
the model, a node that does not have that yet cannot try it out: the refusal would cost its gas.
"""

from typing import Final

from .errors import InvalidTask
from .records import Parameters
from .renewing import compute_readable_until

SLACK_SECONDS: Final = 86_400
"""With less to spare a publisher is warned: lobbies start late, and rounds are paused."""


def compute_slack(parameters: Parameters, retention_seconds: int) -> int:
    """Return for how many seconds more than `publish` demands the model is kept.

    Exact, and the same whenever it is included, so that no margin is needed: the transaction that
    publishes declares the model too, and its time counts from the same block.
    Source: contracts/capacity.vy, `_plan`.
    """
    first_end = parameters.join_seconds + parameters.commit_seconds + parameters.reveal_seconds
    return retention_seconds - compute_readable_until(parameters, first_end)


def check_retention(parameters: Parameters, retention_seconds: int) -> None:
    """Raises InvalidTask `task_retention` for a model that would expire too soon."""
    missing = -compute_slack(parameters, retention_seconds)
    if missing <= 0:
        return
    period = parameters.commit_seconds + parameters.reveal_seconds
    times = parameters.max_extensions + 1
    most = {
        "join_seconds": parameters.join_seconds - missing,
        "commit_seconds and reveal_seconds together": period - -(-missing // times),
        "max_extensions": parameters.max_extensions - -(-missing // period),
    }
    cures = [f"{name} at most {value}" for name, value in most.items() if value > 0]
    raise InvalidTask(
        "task_retention",
        f"the chain keeps a model for {format_seconds(retention_seconds)}, and the lobby, "
        f"{times} x a round's periods and a day to close it take {format_seconds(missing)} more; "
        f"make {', or '.join(cures) or 'lobby, periods and extensions shorter'}",
    )


def format_seconds(seconds: int) -> str:
    """Return a time in days, hours, minutes and seconds, such as `2 d 3 h`."""
    left, parts = seconds, []
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, unit)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts) or "0 s"
