"""Limits the clips being uploaded: how many at once, and how many of one client."""

from collections.abc import Iterable
from functools import partial
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from starlette.types import Scope

from registry.api.pace import Exchange, end_slowest
from registry.errors import ServerBusy
from registry.keys.grant import GRANT, Grant
from registry.storage.uploads import DECODERS, Upload

# At most seven wait for each decoder, a few seconds if they are like most. All take 320 MiB of disk
# at most. The last places, one for each decoder, are for other clients.
AT_ONCE = 8 * DECODERS
OF_ONE_CLIENT = AT_ONCE - DECODERS
RETRY_S = 2


class Uploads:
    """The clips being uploaded: few at once, and never all of one client.

    Where all places are taken, the one that lags most behind its pace is ended for the next.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[Exchange, Upload] = {}

    def begin(self, client: str, exchange: Exchange) -> Upload:
        """Begin an upload, which the caller closes. Raises ServerBusy."""
        self.make_room(client)
        upload = Upload(self._folder, client, partial(self._open.pop, exchange, None))
        self._open[exchange] = upload
        return upload

    def make_room(self, client: str) -> None:
        """Make room for one more of this client, by ending what lags. Raises ServerBusy."""
        own = [exchange for exchange, upload in self._open.items() if upload.client == client]
        if len(own) >= OF_ONE_CLIENT:
            self._end_one_of(own, _busy(OF_ONE_CLIENT, "of one client the most"))
        elif len(self._open) >= AT_ONCE:
            self._end_one_of(self._open, _busy(AT_ONCE, "the most"))

    def drop_now(self) -> None:
        """Remove the files of all, for a process that ends without their requests; any thread."""
        for upload in [*self._open.values()]:
            upload.drop()

    def _end_one_of(self, exchanges: Iterable[Exchange], busy: str) -> None:
        slowest = end_slowest(exchanges)
        if slowest is None:
            raise ServerBusy(busy, RETRY_S)
        del self._open[slowest]  # at once, not only when its request has seen it


def client_of(scope: Scope) -> str:
    """Return whose request it is: the key, or the address if none is asked for.

    Of IPv6 it is the network of 64 bits, all of which may be one machine's.
    """
    if GRANT in scope:
        grant: Grant = scope[GRANT]
        return grant.client
    host: str = (scope.get("client") or ("", 0))[0]
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv4Address):
        return host
    return str(address.ipv4_mapped or f"{int(address) >> 64:016x}")


def _busy(clips: int, most: str) -> str:
    return (
        f"{clips} clips are on their way in already, {most} at once. This one was not looked at:"
        " send it again."
    )
