"""Which conditions of connections need a person. Plain data; knows nothing of Dagster."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from finora_pipeline.accounts.model import Connection, Status, attention_alarm
from finora_pipeline.plans import PLANS, Plan

USERS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that needs a person: `key` tells it from all others, `message` is a sentence or two."""

    key: str
    message: str


def of_connections(connections: Iterable[Connection], now: datetime) -> list[Condition]:
    """A condition for each connection that needs attention, and for each plan whose promise is broken.

    Data counts as too old when a plan's `lead` has passed after the promise: by then what was missed has been
    tried again.
    """
    found: list[Condition] = []
    late: dict[str, list[Connection]] = {}
    for one in connections:
        if one.status is Status.NEEDS_ATTENTION:
            found.append(
                Condition(
                    attention_alarm(one.user_id),
                    f"The OpenAI connection of {one.user_id} needs attention: {one.status_reason}",
                )
            )
        promised = one.next_refresh_at
        if one.status is Status.ACTIVE and promised and now > promised + one.plan.lead:
            late.setdefault(one.plan.name, []).append(one)
    return found + [_too_old(PLANS[name], users) for name, users in late.items()]


def _too_old(plan: Plan, late: list[Connection]) -> Condition:
    late = sorted(late, key=lambda one: (one.refreshed_at or one.connected_at, one.user_id))
    named = ", ".join(one.user_id for one in late[:USERS_NAMED])
    more = f" and {len(late) - USERS_NAMED} more" if len(late) > USERS_NAMED else ""
    oldest = late[0].refreshed_at or late[0].connected_at
    return Condition(
        f"too old/{plan.name}",
        f"Data of the {plan.name} plan is older than promised ({plan.interval_text}): {named}{more}, the "
        f"oldest from {oldest:%Y-%m-%d %H:%M} UTC. Look whether the daemon runs and what the last runs say.",
    )
