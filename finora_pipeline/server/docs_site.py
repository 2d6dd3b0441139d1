"""The built documentation at /docs, with a content policy that allows no other host.

`make site` builds it into `finora_pipeline/site`. Inline scripts of a page are allowed by their hashes, so
injected scripts do not run.
"""

import hashlib
import os
import re
from base64 import b64encode
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Receive, Scope, Send

SITE = Path(__file__).parent.parent / "site"
NOT_BUILT = "The documentation has not been built here: run `make site` in a checkout, then reload this page."
# The theme sets widths and colors in `style` attributes; its search runs in a worker.
POLICY = (
    "default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)
_INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)


def docs_routes(site: Path = SITE) -> list[BaseRoute]:
    """The routes of the documentation. Addresses of Markdown files redirect to the pages built from them."""
    return [Route("/docs/{page:path}.md", _redirect_to_page), Mount("/docs", DocsSite(site))]


class DocsSite(StaticFiles):
    """The files of a built site, or one sentence while it is not built."""

    def __init__(self, site: Path) -> None:
        super().__init__(directory=site, html=True, check_dir=False)
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Checked at each request: the site may be built while this process runs.
        if (self._site / "index.html").is_file():
            await super().__call__(scope, receive, send)
        else:
            await PlainTextResponse(NOT_BUILT, 404)(scope, receive, send)

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Answer with a file, or with 304: its headers replace those that the browser has kept."""
        return _with_policy(
            super().file_response(full_path, stat_result, scope, status_code), Path(full_path)
        )

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with a file, or with the site's own page for a missing one."""
        response = await super().get_response(path, scope)
        return _with_policy(response, self._site / "404.html") if response.status_code == 404 else response


def _with_policy(response: Response, file: Path) -> Response:
    hashes = "".join(f" 'sha256-{digest}'" for digest in _script_hashes(file, file.stat().st_mtime_ns))
    response.headers["Content-Security-Policy"] = POLICY.format(hashes=hashes)
    # Browsers revalidate at each visit and get 304 while the file is unchanged.
    response.headers["Cache-Control"] = "no-cache"
    return response


@lru_cache(maxsize=1_000)
def _script_hashes(page: Path, changed_at_ns: int) -> tuple[str, ...]:  # noqa: ARG001
    """Hashes of a page's inline scripts, as a content policy names them; computed once for each change."""
    if page.suffix != ".html":
        return ()
    scripts = dict.fromkeys(_INLINE_SCRIPT.findall(page.read_bytes()))
    return tuple(b64encode(hashlib.sha256(script).digest()).decode() for script in scripts)


def _redirect_to_page(request: Request) -> Response:
    folder, _, name = request.path_params["page"].rpartition("/")
    parts = [part for part in (folder, name) if part and part != "index"]
    return RedirectResponse("/".join(["/docs", *parts, ""]), 301)
