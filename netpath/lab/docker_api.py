"""The few requests of the Docker Engine API (1.24 and later) that a lab needs, over its Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import quote

from netpath.errors import NetpathError


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Docker:
    """A Docker Engine listening on a Unix socket."""

    def __init__(self, path: str, *, timeout: float = 60) -> None:
        self.path, self._timeout = path, timeout

    def ask(self, method: str, target: str, body: Any = None) -> Any:
        """A request and its answer, from JSON. Raises NetpathError with the engine's message, OSError if nobody answers."""
        connection = _Connection(self.path, self._timeout)
        try:
            raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
            connection.request(method, target, raw, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except http.client.HTTPException as error:
            raise NetpathError(f"docker at {self.path}: {method} {target}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if answer.status >= 400:
            try:
                message = json.loads(text)["message"]
            except (ValueError, KeyError, TypeError):
                message = text
            raise NetpathError(f"docker at {self.path}: {method} {target}: {' '.join(str(message).split())}")
        if "application/json" not in answer.getheader("Content-Type", "") or not text.strip():
            return text
        # Progress comes as several documents, one a line.
        return json.loads(text.splitlines()[-1]) if "\n" in text.strip() else json.loads(text)

    def answers(self) -> bool:
        try:
            return bool(self.ask("GET", "/_ping") == "OK")
        except (OSError, NetpathError):
            return False

    def load_image(self, repository: str, tar: bytes) -> None:
        """Make an image of one layer of a file system (docker import)."""
        self.ask("POST", f"/images/create?fromSrc=-&repo={quote(repository)}&tag=latest", tar)

    def network(self, name: str, subnet: str) -> None:
        self.ask("POST", "/networks/create", {"Name": name, "Driver": "bridge", "IPAM": {"Config": [{"Subnet": subnet}]}})

    def run(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Create and start a container and give what ``docker inspect`` says of it."""
        made = self.ask("POST", f"/containers/create?name={quote(name)}", options)
        self.ask("POST", f"/containers/{made['Id']}/start")
        found: dict[str, Any] = self.ask("GET", f"/containers/{made['Id']}/json")
        return found
