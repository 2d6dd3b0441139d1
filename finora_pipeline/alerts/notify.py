"""Notifications by e-mail, Slack, webhook or any other service that Apprise has a scheme for."""

import logging
import os
from collections.abc import Iterable

import apprise

from finora_pipeline.alerts.store import Alert
from finora_pipeline.openai_admin.keys import redact

NOTIFY_VARIABLE = "FINORA_NOTIFY"
ALERTS_NAMED = 20
SEND_SECONDS = 30
_log = logging.getLogger(__name__)
# Apprise's log messages may hold an address with its password.
logging.getLogger("apprise").disabled = True


class NotifyError(Exception):
    """A notification failed; the message names the kinds of addresses, never the addresses themselves.

    `sent_by` holds the kinds of addresses that accepted it.
    """

    def __init__(self, message: str, sent_by: list[str]) -> None:
        super().__init__(message)
        self.sent_by = sent_by


class Notifier:
    """Sends messages to the addresses in an environment variable: Apprise URLs separated by white space.

    They hold passwords and tokens, so they are read when needed and never stored, logged or shown.
    """

    def __init__(self, variable: str = NOTIFY_VARIABLE) -> None:
        self._variable = variable

    @property
    def kinds(self) -> list[str]:
        """The scheme of each address: mailto, slack, json."""
        return [_kind(address) for address in self._addresses()]

    def send(self, title: str, body: str) -> None:
        """Send to every address. Raises `NotifyError` if an address is unusable or refused the message."""
        sent: list[str] = []
        failed: list[str] = []
        for address in self._addresses():
            kind = _kind(address)
            sender = apprise.Apprise()
            try:
                is_sent = sender.add(address) and sender.notify(
                    body=redact(body), title=redact(title), body_format="text", timeout=SEND_SECONDS
                )
            except Exception as error:
                # The error's text may hold the address.
                _log.warning("Notifying by %s failed: %s", kind, type(error).__name__)
                is_sent = False
            (sent if is_sent else failed).append(kind)
        if failed:
            raise NotifyError(
                f"No notification reached {len(failed)} of the addresses in {self._variable} "
                f"({', '.join(failed)}). Check their spelling and whether the services can be reached.",
                sent,
            )

    def _addresses(self) -> list[str]:
        return os.environ.get(self._variable, "").split()


def _kind(address: str) -> str:
    # Without "://" the text before a colon, or the whole text, may be a name or a secret.
    scheme, separator, _ = address.partition("://")
    return scheme if separator else "one without ://"


def message_of(alerts: Iterable[Alert]) -> tuple[str, str]:
    """The title and body of a message about alerts, new ones first."""
    alerts = list(alerts)
    new = [alert for alert in alerts if alert.resolved_at is None]
    over = [alert for alert in alerts if alert.resolved_at is not None]
    counts = [f"{len(group)} {word}" for group, word in ((new, "new"), (over, "over")) if group]
    lines = [f"• {alert.message}" for alert in new[:ALERTS_NAMED]]
    lines += [f"✓ Over since {alert.resolved_at:%H:%M} UTC: {alert.message}" for alert in over[:ALERTS_NAMED]]
    left_out = len(alerts) - len(lines)
    if left_out:
        lines.append(f"… and {left_out} more: finora alerts lists them.")
    return f"finora: {', '.join(counts)}", "\n".join(lines)
