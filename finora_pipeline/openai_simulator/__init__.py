"""OpenAI's organization API over made-up organizations: for the demo, the tests and the benchmarks."""

from finora_pipeline.openai_simulator.app import Simulator
from finora_pipeline.openai_simulator.faults import Fault, FaultKind, KeyState
from finora_pipeline.openai_simulator.organization import (
    OrganizationSpec,
    SimulatedOrganization,
    Truth,
)
from finora_pipeline.openai_simulator.server import running

__all__ = [
    "Fault",
    "FaultKind",
    "KeyState",
    "OrganizationSpec",
    "SimulatedOrganization",
    "Simulator",
    "Truth",
    "running",
]
