"""What somebody may do, and with which voices."""

from dataclasses import dataclass

from registry.key_errors import KeyLimited, ScopeMissing
from registry.storage.keys import Scope

ADMIN: Scope = "admin"  # may do everything
GRANT = "voices.grant"  # where a request's scope has it


@dataclass(frozen=True)
class Need:
    """What a route takes: a scope, or None for any key; and whether that is for all voices."""

    scope: Scope | None
    all_voices: bool = False


@dataclass(frozen=True)
class Grant:
    """`voices` has the ids of those that there are to its holder; None: all of them."""

    key_id: str
    scopes: frozenset[str]
    voices: frozenset[str] | None

    @property
    def client(self) -> str:
        """Whose turn it is, by name: no address looks like this."""
        return f"key {self.key_id}"

    def refuse_without(self, need: Need) -> None:
        """Raises ScopeMissing, KeyLimited."""
        if need.scope is not None and not self.scopes & {need.scope, ADMIN}:
            raise ScopeMissing(need.scope)
        if need.all_voices and self.voices is not None:
            raise KeyLimited
