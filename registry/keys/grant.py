"""The rights of a key: what its holder may do, and with which voices."""

from dataclasses import dataclass

from registry.key_errors import KeyLimited, ScopeMissing
from registry.storage.keys import Scope

ADMIN: Scope = "admin"  # may do everything
GRANT = "voices.grant"  # where a request's scope has it


@dataclass(frozen=True)
class Need:
    """The right that a route needs: a scope, or None for any key; and whether for all voices."""

    scope: Scope | None
    all_voices: bool = False


@dataclass(frozen=True)
class Grant:
    """The rights of a key; `voices` has the ids of those that its holder may know of; None: all."""

    key_id: str
    scopes: frozenset[str]
    voices: frozenset[str] | None

    @property
    def client(self) -> str:
        """The name under which its requests take turns; no address looks like this."""
        return f"key {self.key_id}"

    def refuse_without(self, need: Need) -> None:
        """Raise ScopeMissing or KeyLimited unless the grant has what is needed."""
        if need.scope is not None and not self.scopes & {need.scope, ADMIN}:
            raise ScopeMissing(need.scope)
        if need.all_voices and self.voices is not None:
            raise KeyLimited
