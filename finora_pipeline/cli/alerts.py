"""finora alerts: the open alerts."""

from datetime import UTC, datetime

import click
from rich.table import Table

from finora_pipeline.cli.terminal import json_option, messages, output, plain_errors, print_json
from finora_pipeline.cli.terminal import row as text_row


@click.command()
@click.option("--test", is_flag=True, help="Send a test message to every address in FINORA_NOTIFY.")
@json_option
def alerts(test: bool, as_json: bool) -> None:
    """Show the open alerts: those the daemon recorded last, and the data folder's current ones.

    FINORA_NOTIFY holds the addresses to notify, separated by white space, in Apprise's notation
    (https://appriseit.com/services):

    \b
      mailtos://user:password@mail.example.com?to=ops@example.com
      slack://TokenA/TokenB/TokenC/#costs
      jsons://hooks.example.com/finora
    """
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.alerts.conditions import OF_INSTALLATION, of_installation
    from finora_pipeline.alerts.store import Alert, open_alerts
    from finora_pipeline.settings import Settings
    from finora_pipeline.warehouse.database import Warehouse

    with plain_errors():
        if test:
            _send_test()
            return
        settings = Settings.from_environment()
        recorded = open_alerts(accounts_of(settings).database)
    now = datetime.now(UTC)
    judged = of_installation(Warehouse(settings.home), settings.dagster_home, now)
    since = {alert.key: alert.opened_at for alert in recorded}
    found = [alert for alert in recorded if not alert.key.startswith(OF_INSTALLATION)]
    found += [Alert(one.key, one.message, since.get(one.key, now), None) for one in judged]
    if as_json:
        print_json([{"key": a.key, "since": a.opened_at, "message": a.message} for a in found])
        return
    if not found:
        messages.print("No open alerts.")
        return
    table = Table("Since (UTC)", "Alert")
    for alert in found:
        table.add_row(*text_row(f"{alert.opened_at:%Y-%m-%d %H:%M}", alert.message))
    output.print(table)


def _send_test() -> None:
    from finora_pipeline.alerts.notify import NOTIFY_VARIABLE, Notifier, NotifyError

    notifier = Notifier()
    if not notifier.kinds:
        raise click.ClickException(f"{NOTIFY_VARIABLE} is empty. Set it to the addresses to notify.")
    try:
        notifier.send("finora: a test", "This is what an alert looks like.")
    except NotifyError as error:
        raise click.ClickException(str(error)) from None
    messages.print(f"Sent by {', '.join(notifier.kinds)}.")
