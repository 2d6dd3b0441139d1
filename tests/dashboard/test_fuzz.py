"""Any request gets a page of the server, in which no input becomes code."""

from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Mount, Route

from tests.dashboard.served import OWN, Served, read_html

# The same examples in every run, without a time limit on a busy machine.
REPEATABLE = settings(
    derandomize=True,
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Marks input; unescaped it would be an element of the page.
MARK = "<i data-x='1' y=\"2\">&amp;"
NASTY = st.sampled_from(
    [
        "",
        "\0",
        "\0'\"",
        "'; DROP TABLE daily_costs; --",
        "' OR 1=1 --",
        "%27%20OR%201=1",
        "$user_id",
        "{{ 7 * 7 }}",
        "{% include 'base.html' %}",
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "javascript:alert(1)",
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "//[",
        "//evil.example",
        "\r\nSet-Cookie: finora=x",
        "\ud7ff\ue000\ufffe\uffff",
        "\u202e\u200b\ufeff",
        "😀" * 40,
        "x" * 3000,
        "9" * 400,
        "-1",
        "NaN",
        "0001-01-01",
        "9999-12-31",
        "2026-W48-2",
        "acme",
        "7d",
        "month",
        "custom",
        "openai",
        "growth",
        "yes",
    ]
)
TEXTS = NASTY | st.text(max_size=40) | NASTY.map(lambda text: text + MARK)
IDS = st.sampled_from(["acme", "tiny", "missing"]) | TEXTS
FIELDS = st.dictionaries(
    st.sampled_from(
        ["period", "from", "to", "model", "project", "saved", "update", "q", "next", "code", "state", "error",
         "user_id", "plan", "provider", "key", "name", "password", "everywhere"]
    ),
    TEXTS,
    max_size=4,
)  # fmt: skip
METHODS = st.sampled_from(["GET", "GET", "GET", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"])


def paths(served: Served) -> list[str]:
    found = [route.path for route in served.app.routes if isinstance(route, Route)]
    return found + [f"{route.path}/{{path}}" for route in served.app.routes if isinstance(route, Mount)]


def ask(
    served: Served, template: str, method: str, user_id: str, query: dict[str, str], form: dict[str, str],
    headers: dict[str, str],
) -> None:  # fmt: skip
    named = quote(user_id, safe="", errors="replace")
    path = template.replace("{user_id}", named).replace("{path}", named)
    asked = f"?{urlencode(query, errors='replace')}" if query else ""
    sent = urlencode(form, errors="replace") if method == "POST" else None
    kind = {"Content-Type": "application/x-www-form-urlencoded"} if sent else {}
    answer = served.browser.request(method, path + asked, content=sent, headers=OWN | kind | headers)
    served.browser.cookies.clear()
    assert answer.status_code < 500, (method, path + asked, sent)
    location = answer.headers.get("location", "/")
    assert location.startswith(("/", served.url + "/"))
    assert not location.startswith("//")
    if answer.headers.get("content-type", "").startswith("text/html") and method != "HEAD":
        page = read_html(answer.text)
        assert page.all("i") == []
        assert page.all("img") == []
        assert MARK not in answer.text
        # One script, and it is the server's own.
        assert [script.text for script in page.all("script")] == [""]
        for element in [page, *page.all("a"), *page.all("form")]:
            for name in ("href", "action"):
                assert (element.attributes.get(name) or "/").startswith(("/", "#"))


@REPEATABLE
@given(data=st.data())
def test_no_request_breaks_the_server(data: st.DataObject, local: Served) -> None:
    template = data.draw(st.sampled_from(paths(local)))
    method = data.draw(METHODS)
    # Removing a user or changing a plan would break other tests.
    others = ["tiny-2", "missing"] if method == "POST" else ["acme", "tiny", "missing"]
    user_id = data.draw(st.sampled_from(others) | TEXTS)
    if method == "POST" and user_id in ("acme", "bolt", "tiny", "gone"):
        return
    ask(local, template, method, user_id, data.draw(FIELDS), data.draw(FIELDS), {})


@settings(REPEATABLE, max_examples=40)
@given(data=st.data())
def test_no_request_breaks_a_server_with_sign_in(data: st.DataObject, closed: Served) -> None:
    template = data.draw(st.sampled_from([path for path in paths(closed) if path != "/sign-in"]))
    method = data.draw(METHODS)
    cookie = {
        "Cookie": data.draw(st.sampled_from(["", "finora=x", 'finora="\\";;=', "a=b; finora", "finora=\x7f"]))
    }
    ask(closed, template, method, data.draw(IDS), data.draw(FIELDS), data.draw(FIELDS), cookie)


@settings(REPEATABLE, max_examples=10)
@given(name=TEXTS, password=TEXTS, after=TEXTS)
def test_no_sign_in_breaks_the_server(name: str, password: str, after: str, closed: Served) -> None:
    form = {"name": name, "password": password, "next": after}
    ask(closed, "/sign-in", "POST", "", {"next": after}, form, {})


@pytest.mark.parametrize("after", ["/users/acme/overview?model=" + quote(MARK), "/" + MARK, "/{{ 7 * 7 }}"])
def test_input_repeated_on_a_page_is_escaped(after: str, closed: Served) -> None:
    shown = closed.post("/sign-in", {"name": MARK, "password": "wrong", "next": after})
    assert shown.status_code == 401
    assert MARK not in shown.text
    assert read_html(shown.text).one("input", name="next").attributes["value"] == after
