"""Show the interactive page as a tab of TensorBoard.

TensorBoard imports this module when it starts, and does not start if that fails. So it imports what
TensorBoard itself has, and everything else when the tab is used, where an error costs the tab only.
"""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

from tensorboard.plugins import base_plugin

if TYPE_CHECKING:
    from .index import Source

__all__ = ["InterpretabilityTab"]


class InterpretabilityTab(base_plugin.TBPlugin):  # type: ignore[misc]
    """Serve the page and its data below ``/data/plugin/ncp_callbacks/``.

    The log is read from its files where its folder is on this machine, and through TensorBoard
    elsewhere.

    Args:
        context: What TensorBoard passes to its plugins.
    """

    plugin_name = "ncp_callbacks"

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider, self._log_dir = context.data_provider, context.logdir
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._active = False
        self._search: threading.Thread | None = None
        self._unserved = ""

    def is_active(self) -> bool:
        """Return whether a run has arrays, as far as is known: TensorBoard waits for the answer."""
        if self._unserved:
            return True  # The tab says why it is empty.
        if not self._active and (self._search is None or not self._search.is_alive()):
            self._search = threading.Thread(target=self._find_arrays, daemon=True)
            self._search.start()
            self._search.join(0.2)
        return self._active

    def _find_arrays(self) -> None:
        try:
            source = self._opened()
            for name in source.names():
                if any(track.about.get("kind") for track in source.run(name).tracks.values()):
                    self._active = True
                    return
        except Exception:  # Whatever it is, TensorBoard must go on; the tab itself tells it.
            return

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Name the module that draws the tab."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Interpretability")

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return the applications by path; only one that tells why, if the page can't be served."""
        try:
            from .api import NAMES
            from .static_files import MODULES
        except Exception as error:  # TensorBoard would not start.
            self._unserved = f"{type(error).__name__}: {error}"
            return {"/index.js": self._tell}
        return {f"/{name}": self._serve for name in (*MODULES, *NAMES)}

    def _opened(self) -> Source:
        with self._lock:
            if self._source is None:
                from .index import LogIndex
                from .provider import ProviderSource

                folder = os.path.expanduser(self._log_dir or "")
                local = bool(folder) and "://" not in folder and os.path.isdir(folder)
                self._source = LogIndex(folder) if local else ProviderSource(self._provider)
            return self._source

    def _tell(self, environ: Any, start_response: Any) -> Any:
        from werkzeug import Response

        words = json.dumps(
            f"This tab of ncp_callbacks can't be shown: {self._unserved}. Install the package "
            "again, in the environment of TensorBoard."
        )
        script = f"export function render() {{ document.body.append({words}); }}"
        return Response(script, content_type="text/javascript; charset=utf-8")(
            environ, start_response
        )

    def _serve(self, environ: Any, start_response: Any) -> Any:
        from werkzeug import Request, Response

        from .api import Answer, answer
        from .static_files import module_text

        request = Request(environ)
        name = request.path.partition(f"/{self.plugin_name}/")[2]
        try:
            if name.endswith(".js"):
                script = module_text(name).encode()
                found = Answer(200, "text/javascript; charset=utf-8", script)
            else:
                found = answer(self._opened(), name, request.args)
        except Exception as error:  # TensorBoard would show a page of its own.
            text = f"the tab failed: {type(error).__name__}: {error}"
            found = Answer(500, "text/plain; charset=utf-8", text.encode())
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        response = Response(
            found.body, status=found.status, content_type=found.type, headers=headers
        )
        return response(environ, start_response)
