"""OpenAI's answers about the directory of a simulated organization: its lists and objects."""

from datetime import datetime

from finora_pipeline.openai_simulator.answers import BadRequest, Params, Row, whole_number
from finora_pipeline.openai_simulator.organization import (
    SimulatedApiKey,
    SimulatedMember,
    SimulatedOrganization,
    SimulatedProject,
    SimulatedServiceAccount,
)


def directory(
    organization: SimulatedOrganization, path: tuple[str, ...], params: Params, now: datetime
) -> Row | None:
    """A list or object of the organization's directory, or None if OpenAI has no such object.

    `path`: the parts after `/organization/`. Raises `BadRequest`.
    """
    projects = {project.id: project for project in organization.projects}
    match path:
        case ("projects",):
            archived = params.get("include_archived", ["false"])[0].lower() == "true"
            shown = [p for p in organization.projects if archived or not _is_past(p.archived_at, now)]
            return _listed([_project(p, now) for p in shown], params)
        case ("users",):
            present = [m for m in organization.members if not _is_past(m.left_at, now)]
            return _listed([_member(m) for m in present], params)
        case ("admin_api_keys",):
            return _listed([_admin_key(organization)], params)
        case ("projects", project_id) if project_id in projects:
            return _project(projects[project_id], now)
        case ("projects", project_id, kind) if project_id in projects:
            keys = [key for key in organization.api_keys if key.project.id == project_id]
            return _of_project(kind, keys, params, now)
    return None


def _of_project(kind: str, keys: list[SimulatedApiKey], params: Params, now: datetime) -> Row | None:
    owners = {key.owner.id: key.owner for key in keys}.values()
    match kind:
        case "api_keys":
            # By default OpenAI omits the keys of owners without access.
            access = params.get("owner_project_access", ["active"])[0]
            if access not in ("active", "inactive", "any"):
                raise BadRequest("Invalid 'owner_project_access': expected active, inactive or any.")
            shown = [_api_key(key, now) for key in keys if not _is_past(key.deleted_at, now)]
            return _listed([k for k in shown if access in ("any", k["owner_project_access"])], params)
        case "users":
            members = [o for o in owners if isinstance(o, SimulatedMember) and not _is_past(o.left_at, now)]
            return _listed([_member(m) | _PROJECT_MEMBER for m in members], params)
        case "service_accounts":
            accounts = [o for o in owners if isinstance(o, SimulatedServiceAccount)]
            return _listed([_service_account(a) | _PROJECT_ACCOUNT for a in accounts], params)
    return None


def _is_past(moment: int | None, now: datetime) -> bool:
    return moment is not None and moment <= now.timestamp()


_PROJECT_MEMBER = {"object": "organization.project.user", "role": "member"}
_PROJECT_ACCOUNT = {"object": "organization.project.service_account"}


def _listed(objects: list[Row], params: Params) -> Row:
    limit = whole_number(params, "limit", range(1, 101), 20)
    after = params.get("after", [None])[0]
    ids = [item["id"] for item in objects]
    first = ids.index(after) + 1 if after in ids else 0
    shown = objects[first : first + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": first + limit < len(objects),
    }


def _project(project: SimulatedProject, now: datetime) -> Row:
    is_archived = _is_past(project.archived_at, now)
    return {
        "id": project.id,
        "object": "organization.project",
        "name": project.name,
        "created_at": project.created_at,
        "archived_at": project.archived_at if is_archived else None,
        "status": "archived" if is_archived else "active",
    }


def _member(member: SimulatedMember) -> Row:
    return {
        "object": "organization.user",
        "id": member.id,
        "name": member.name,
        "email": member.email,
        "role": member.role,
        "added_at": member.added_at,
    }


def _service_account(account: SimulatedServiceAccount) -> Row:
    return {
        "id": account.id,
        "name": account.name,
        "role": account.role,
        "created_at": account.created_at,
    }


def _owner(owner: SimulatedMember | SimulatedServiceAccount) -> Row:
    if isinstance(owner, SimulatedServiceAccount):
        return {"type": "service_account", "service_account": _service_account(owner)}
    return {
        "type": "user",
        "user": {
            "id": owner.id,
            "name": owner.name,
            "email": owner.email,
            "role": "member",
            "created_at": owner.added_at,
        },
    }


def _api_key(key: SimulatedApiKey, now: datetime) -> Row:
    has_left = isinstance(key.owner, SimulatedMember) and _is_past(key.owner.left_at, now)
    return {
        "object": "organization.project.api_key",
        "id": key.id,
        "name": key.name,
        "redacted_value": f"sk-proj-***{key.id[-4:]}",
        "created_at": key.created_at,
        "last_used_at": key.created_at,
        "owner_project_access": "inactive" if has_left else "active",
        "owner": _owner(key.owner),
    }


def _admin_key(organization: SimulatedOrganization) -> Row:
    owner = organization.members[0]
    return {
        "object": "organization.admin_api_key",
        "id": f"key_{organization.id[4:]}",
        "name": "Finora",
        "redacted_value": f"sk-admin-***{organization.admin_key[-4:]}",
        "created_at": owner.added_at,
        "expires_at": None,
        "last_used_at": owner.added_at,
        "owner": {
            "type": "user",
            "object": "organization.user",
            "id": owner.id,
            "name": owner.name,
            "created_at": owner.added_at,
            "role": owner.role,
        },
    }
