"""The errors of keys: who may ask, and for what. None tells which keys or voices there are.

RegistryError
├── KeyRefused 401
│   └── KeyMissing · KeyInvalid
├── ScopeMissing · KeyLimited 403 · AdminLimited 422
└── KeyNotFound 404 · KeysFull 409
"""

from registry.errors import RegistryError

REALM = 'Bearer realm="voices"'


class KeyRefused(RegistryError):
    """Refuses a key; `challenge` is what WWW-Authenticate says of it (RFC 6750)."""

    status, code, title = 401, "key-invalid", "This key is not taken"
    challenge = f'{REALM}, error="invalid_token"'

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": self.challenge}


class KeyMissing(KeyRefused):
    code, title = "key-missing", "This server asks for a key"
    challenge = REALM

    def __init__(self) -> None:
        super().__init__(
            "This server asks for a key, and the request has none: send it as "
            "`Authorization: Bearer KEY` or as `xi-api-key: KEY`."
        )


class KeyInvalid(KeyRefused):
    pass


class ScopeMissing(RegistryError):
    status, code, title = 403, "scope-missing", "The key may not do this"

    def __init__(self, scope: str) -> None:
        super().__init__(f"This key lacks the scope {scope!r}, which this takes.", scope=scope)
        self._scope = scope

    def headers(self) -> dict[str, str]:
        said = f'{REALM}, error="insufficient_scope", scope="{self._scope}"'
        return {"WWW-Authenticate": said}


class AdminLimited(RegistryError):
    """Refuses a key with the scope `admin` for some voices: it could make one for any other."""

    status, code, title = 422, "admin-limited", "A key that may do everything is for all voices"

    def __init__(self) -> None:
        super().__init__(
            "A key with the scope 'admin' may make keys for any voice, so it can't be for some.",
            field="voices",
        )


class KeyLimited(RegistryError):
    """Refuses to a key for some voices what could tell which others there are."""

    status, code, title = 403, "key-limited", "The key is for some voices alone"

    def __init__(self) -> None:
        super().__init__(
            "This key is for some voices alone: with it none is enrolled, renamed or cloned."
        )


class KeyNotFound(RegistryError):
    status, code, title = 404, "key-not-found", "No such key"

    def __init__(self) -> None:
        super().__init__("There is no such key, or it is revoked. `GET /keys` lists their ids.")


class KeysFull(RegistryError):
    status, code, title = 409, "keys-full", "There are too many keys"
