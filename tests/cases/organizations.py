"""The usual organization as text to vary: $2.00 yesterday, all by one member and key."""

import json
from typing import Any

_COST = """{"day":-1,"amount":{"value":"%s","currency":"usd"},"quantity":%s,"quantity_unit":"tokens",
"line_item":"gpt-5.5-2026-04-23, %s","project_id":"proj_case0001","project_name":"Alpha",
"organization_id":"org-case0001","organization_name":"Example"}"""
INPUT = _COST % ("1.250000000000000000000000000000000", "250000", "input")
OUTPUT = _COST % ("0.7500000000000000000000000000000000", "25000", "output")
COMPLETIONS = """{"day":-1,"project_id":"proj_case0001","user_id":"user-case0001","api_key_id":"key_case0001",
"model":"gpt-5.5-2026-04-23","batch":false,"service_tier":"default","input_tokens":250000,
"input_cached_tokens":0,"input_uncached_tokens":250000,"output_tokens":25000,"num_model_requests":5}"""
ALPHA = """{"id":"proj_case0001","object":"organization.project","name":"Alpha","created_at":1700000000,
"archived_at":null,"status":"active"}"""
OLD = """{"id":"proj_case0002","object":"organization.project","name":"Old","created_at":1700000000,
"archived_at":1750000000,"status":"archived"}"""
ONE = """{"id":"user-case0001","object":"organization.user","name":"Member One","email":"one@case.example",
"role":"owner","added_at":1700000000}"""
KEY = """{"id":"key_case0001","object":"organization.project.api_key","name":"prod key",
"redacted_value":"sk-...abc","created_at":1700000000,"owner":{"type":"user","user":{"id":"user-case0001",
"name":"Member One","email":"one@case.example"}}}"""
RUNNER = """{"id":"user-svcacct01","object":"organization.project.service_account","name":"CI runner",
"role":"member","created_at":1700000000}"""


def usual(
    *,
    costs: str = f"{INPUT},{OUTPUT}",
    completions: str = COMPLETIONS,
    rows: str = "",
    projects: str = f"{ALPHA},{OLD}",
    users: str = ONE,
    api_keys: str = KEY,
    service_accounts: str = RUNNER,
    **parts: Any,
) -> str:
    """Return the usual organization with other rows or objects, as JSON text, or other parts."""
    more = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in parts.items())
    return (
        f'{{"rows":{{"costs":[{costs}],"completions":[{completions}]{rows}}},'
        f'"lists":{{"projects":[{projects}],"users":[{users}],"api_keys":{{"proj_case0001":[{api_keys}]}},'
        f'"service_accounts":{{"proj_case0001":[{service_accounts}]}}}}{more}}}'
    )


def changed(text: str, old: str, new: str) -> str:
    """Replace each `old` in the text; fail where it does not occur."""
    assert old in text, old
    return text.replace(old, new)


def error(message: str, code: str | None = None, kind: str = "invalid_request_error") -> dict[str, Any]:
    """Return an error body as OpenAI writes it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
