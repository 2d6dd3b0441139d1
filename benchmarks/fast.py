"""A copy of the package in which plans promise minutes and OpenAI gets seconds.

`finora up` and all its processes run from the copy; only these figures differ.
"""

import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import finora_pipeline
from finora_pipeline.plans import PLANS

# Interval, ticks and lead of each plan. cron's shortest interval is a minute.
FAST = {
    "trial": (timedelta(minutes=8), "1-59/2 * * * *", timedelta(seconds=200)),
    "growth": (timedelta(minutes=8), "*/2 * * * *", timedelta(seconds=200)),
    "scale": (timedelta(minutes=4), "* * * * *", timedelta(seconds=130)),
    "enterprise": (timedelta(minutes=2), "* * * * *", timedelta(seconds=75)),
}
# Time-outs and retries are a fifth of an installation's: the delay by a dead organization
# would not fit into promises of minutes.
FIGURES = {
    "openai_admin/client.py": {
        "timeout_seconds: float = 30.0": "timeout_seconds: float = 6.0",
        "retry_seconds: float = 90.0": "retry_seconds: float = 18.0",
        "longest_pause_seconds: float = 20.0": "longest_pause_seconds: float = 4.0",
    },
}


def accelerate() -> None:
    """Replace the plans of this process by the fast ones."""
    for name, (interval, cron, lead) in FAST.items():
        PLANS[name] = replace(PLANS[name], refresh_interval=interval, cron=cron, lead=lead)


def fast_copy(folder: Path) -> Path:
    """Copy the package into the folder with the fast figures; return the folder."""
    package = folder / "finora_pipeline"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(finora_pipeline.__file__).parent, package, ignore=ignored)
    for name, figures in FIGURES.items():
        text = (package / name).read_text()
        for shipped, fast in figures.items():
            if shipped not in text:
                raise ValueError(f"{name} has no {shipped!r} any more.")
            text = text.replace(shipped, fast)
        (package / name).write_text(text)
    plans = ["from dataclasses import replace"]
    for name, (interval, cron, lead) in FAST.items():
        spans = f"refresh_interval={_text(interval)}, lead={_text(lead)}"
        plans.append(f"PLANS[{name!r}] = replace(PLANS[{name!r}], {spans}, cron={cron!r})")
    with (package / "plans.py").open("a") as file:
        file.write("\n".join(["", *plans, ""]))
    return folder


def _text(span: timedelta) -> str:
    return f"timedelta(seconds={span.total_seconds():g})"
