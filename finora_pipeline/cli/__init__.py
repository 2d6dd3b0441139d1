"""The `finora` command: one module per group of commands; this one collects them and reports errors.

Commands parse options and print results; what they do belongs in the other packages. They import those when
they run, so that `--help` is immediate.
"""

import errno
from typing import Any

import click

from finora_pipeline.accounts.actors import COMMAND_LINE, act_as
from finora_pipeline.cli.alerts import alerts
from finora_pipeline.cli.connections import connect, plan, remove, status, update
from finora_pipeline.cli.dashboard import dashboard, login
from finora_pipeline.cli.demo import demo
from finora_pipeline.cli.master_key import rotate_master_key
from finora_pipeline.cli.queries import sql
from finora_pipeline.cli.refreshes import backfill, refresh
from finora_pipeline.cli.simulation import simulate_openai
from finora_pipeline.cli.up import up
from finora_pipeline.cli.upkeep import purge, rebuild
from finora_pipeline.data_folder.private_files import restrict_new_files
from finora_pipeline.settings import SettingsError


def _about_a_database(error: Exception) -> str | None:
    """The sentence of an error about a database, or None.

    The accounts and the warehouse raise `StorageError`, so any other error is about Dagster's databases.
    """
    from finora_pipeline.data_folder.disk import StorageError, runs_store, storage_error
    from finora_pipeline.settings import Settings

    if not isinstance(error, StorageError):
        error = storage_error(error, runs_store(Settings.from_environment().dagster_home)) or error
    return str(error) if isinstance(error, StorageError) else None


class Commands(click.Group):
    """Lists commands in order of use, and reports invalid settings and storage errors as one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        restrict_new_files()
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise click.ClickException("No space left on the output device.") from None
            if error.filename is None:
                raise
            raise click.ClickException(f"{error.filename} cannot be used: {error.strerror}.") from None
        except Exception as error:
            if sentence := _about_a_database(error):
                raise click.ClickException(sentence) from None
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [name for name, command in self.commands.items() if name == command.name]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="finora-pipeline")
def main() -> None:
    """Costs of your OpenAI organizations: exact, on time, in DuckDB, orchestrated by Dagster.

    \b
    First steps
      finora connect --user acme --plan growth    paste an Admin key at the prompt
      finora refresh --user acme                  fetch its history
      finora sql "FROM user_metrics"              query it

    \b
    Settings come from the environment
      FINORA_HOME         data folder                            ./data
      DAGSTER_HOME        Dagster's own folder                   $FINORA_HOME/dagster
      OPENAI_BASE_URL     address of OpenAI's API                https://api.openai.com/v1
      FINORA_MASTER_KEY   encrypts the stored keys (base64)      else $FINORA_HOME/master.key
      FINORA_ACCOUNTS_URL accounts database (SQLAlchemy URL)     SQLite in $FINORA_HOME
      FINORA_NOTIFY       addresses that alerts are sent to      none
    """
    act_as(COMMAND_LINE)


_COMMANDS = (
    connect, update, remove, status, plan, refresh, backfill, sql, up, dashboard, login,
    alerts, rebuild, purge, rotate_master_key, demo, simulate_openai,
)  # fmt: skip
for _command in _COMMANDS:
    main.add_command(_command)
# The name of earlier versions, for scripts.
main.add_command(alerts, "alarms")
