"""finora alarms: what needs a person now."""

from datetime import UTC, datetime

import click
from rich.table import Table

from finora_pipeline.cli.terminal import json_option, messages, output, plain_errors, print_json
from finora_pipeline.cli.terminal import row as text_row


@click.command()
@click.option("--test", is_flag=True, help="Send a test message to everybody in FINORA_NOTIFY.")
@json_option
def alarms(test: bool, as_json: bool) -> None:
    """Show what needs a person: as the daemon found it last, and the data folder as it is now.

    FINORA_NOTIFY holds the addresses that are told, with white space between them, as Apprise writes them
    (https://appriseit.com/services):

    \b
      mailtos://user:password@mail.example.com?to=ops@example.com
      slack://TokenA/TokenB/TokenC/#costs
      jsons://hooks.example.com/finora
    """
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.alarms.book import Alarm, open_alarms
    from finora_pipeline.alarms.conditions import OF_INSTALLATION, of_installation
    from finora_pipeline.settings import Settings
    from finora_pipeline.warehouse.warehouse import Warehouse

    with plain_errors():
        if test:
            _send_test()
            return
        settings = Settings.from_environment()
        recorded = open_alarms(accounts_of(settings).database)
    now = datetime.now(UTC)
    judged = of_installation(Warehouse(settings.home), settings.dagster_home, now)
    since = {alarm.key: alarm.opened_at for alarm in recorded}
    found = [alarm for alarm in recorded if not alarm.key.startswith(OF_INSTALLATION)]
    found += [Alarm(one.key, one.message, since.get(one.key, now), None) for one in judged]
    if as_json:
        print_json([{"key": a.key, "since": a.opened_at, "message": a.message} for a in found])
        return
    if not found:
        messages.print("Nothing needs you.")
        return
    table = Table("Since (UTC)", "What")
    for alarm in found:
        table.add_row(*text_row(f"{alarm.opened_at:%Y-%m-%d %H:%M}", alarm.message))
    output.print(table)


def _send_test() -> None:
    from finora_pipeline.alarms.notify import NOTIFY_VARIABLE, Notifier, NotifyError

    notifier = Notifier()
    if not notifier.kinds:
        raise click.ClickException(f"{NOTIFY_VARIABLE} is empty: nobody would be told.")
    try:
        notifier.send("finora: a test", "This is what an alarm will look like.")
    except NotifyError as error:
        raise click.ClickException(str(error)) from None
    messages.print(f"Sent by {', '.join(notifier.kinds)}.")
