"""The users of an installation and their plans."""

from datetime import date, datetime
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Connection as Transaction

from finora_pipeline.accounts.audit import note, now_utc
from finora_pipeline.accounts.database import AccountsDatabase, connections, users
from finora_pipeline.accounts.model import NO_HISTORY, AccountsError, check_user_id
from finora_pipeline.plans import PLANS, PRUNE_GRACE, Plan, plan_named


class Users:
    """All users, with and without a connection."""

    def __init__(self, database: AccountsDatabase) -> None:
        self._database = database

    def plan_of(self, user_id: str) -> Plan | None:
        """The user's plan, or None for an unknown user."""
        with self._database.read() as database:
            plan = database.scalar(select(users.c.plan).where(users.c.user_id == user_id))
        return plan_named(plan) if plan else None

    def plans(self) -> dict[str, Plan]:
        """Every user's plan, by user id."""
        with self._database.read() as database:
            rows = database.execute(select(users.c.user_id, users.c.plan).order_by(users.c.user_id))
            return {user_id: plan_named(plan) for user_id, plan in rows}

    def add(self, user_id: str, plan: str | None = None) -> str:
        """Create a user without a connection, unless the user exists; return the checked id.

        Raises `AccountsError` for an id that cannot be used, and `UnknownPlan`.
        """
        user_id = check_user_id(user_id)
        if self.plan_of(user_id) is None:
            with self._database.write() as database:
                save_user(database, user_id, plan, None, now_utc())
        return user_id

    def ids(self) -> list[str]:
        """The ids of all users, sorted."""
        with self._database.read() as database:
            return list(database.scalars(select(users.c.user_id).order_by(users.c.user_id)))

    def purge(self, transaction: Transaction, user_id: str) -> dict[str, int]:
        """Delete a user; return the number of rows deleted by table."""
        return {users.name: transaction.execute(delete(users).where(users.c.user_id == user_id)).rowcount}

    def kept_from(self, now: datetime) -> dict[str, date]:
        """The oldest UTC day kept, by user id, of users whose plan has limited history.

        A plan with less history than the one before takes effect `PRUNE_GRACE` after the change.
        """
        with self._database.read() as database:
            rows = database.execute(select(users.c.user_id, users.c.plan, users.c.plan_since)).all()
        kept: dict[str, date] = {}
        for row in rows:
            first = plan_named(row.plan).first_day_kept(now.date())
            if first and (row.plan_since is None or now - row.plan_since >= PRUNE_GRACE):
                kept[row.user_id] = first - PRUNE_GRACE
        return kept

    def set_plan(self, user_id: str, plan: str) -> Plan:
        """Move a user to another plan. Raises `AccountsError` for an unknown user, and `UnknownPlan`."""
        chosen = plan_named(plan)
        now = now_utc()
        with self._database.write() as database:
            row = database.execute(select(users.c.plan).where(users.c.user_id == user_id)).first()
            if row is None:
                raise AccountsError(f"Unknown user {user_id}. Connect one with finora connect.")
            if chosen.name != row.plan:
                values = {"plan": chosen.name, "plan_since": now}
                database.execute(update(users).where(users.c.user_id == user_id).values(values))
            if chosen.keeps_more_than(plan_named(row.plan)):
                # The next refresh fetches the longer history.
                database.execute(
                    update(connections).where(connections.c.user_id == user_id).values(NO_HISTORY)
                )
            note(database, now, user_id, "plan", chosen.name)
        return chosen


def save_user(
    database: Transaction, user_id: str, plan: str | None, email: str | None, now: datetime
) -> bool:
    """Create or change a user; return whether the user's plan now keeps more history than before.

    Raises `UnknownPlan`: a stored unknown plan would make listing users fail.
    """
    plan = None if plan is None else plan_named(plan).name
    known = database.execute(select(users).where(users.c.user_id == user_id)).first()
    changes: dict[str, Any] = {
        name: value for name, value in (("plan", plan), ("email", email)) if value is not None
    }
    if known is None:
        changes.setdefault("plan", next(iter(PLANS)))
        database.execute(insert(users).values(user_id=user_id, created_at=now, plan_since=now, **changes))
        return False
    if plan is not None and plan != known.plan:
        changes["plan_since"] = now
    if changes:
        database.execute(update(users).where(users.c.user_id == user_id).values(changes))
    return plan is not None and plan_named(plan).keeps_more_than(plan_named(known.plan))
