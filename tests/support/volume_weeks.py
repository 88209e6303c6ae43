"""A World whose clock jumps by days between rounds, while some of its containers live on.

After seven days without use an entry of the Dict is gone. What containers that live on have said is
so for ever, although no fresh one was asked then: what is stored, and what is not.
"""

import time
from contextlib import suppress

from modal_volume import Container, Killed
from volume_faults import Site, World

from registry.errors import VoiceNotFound
from registry.storage.volume import database as snapshot_database
from registry.storage.volume.database import SnapshotDatabase
from registry.storage.volume.store import VolumeStore

MOST_LIVING = 2
COMMIT_KILLS = 0.2  # at the moment after which nobody knows whether a write counts


class Weeks(World):
    """FRESH_S must be 0, so that who lives on looks around at every read."""

    living: tuple[Site, ...] = ()

    def round(self) -> None:
        """All work, some end; then one that lives on is asked, or a fresh one, or one dies late."""
        sites = [*self.living, *self._started(1 + (self.rng.random() < self.overlap))]
        self._let_work(sites)
        with self.quietly():
            self.living = tuple(site for site in sites if self._lives_on(site))[:MOST_LIVING]
            for site in sites:
                if site not in self.living:
                    self._end(site)
            if len(self.living) == 2 and self.rng.random() < 0.7:
                self._die_late(*self.living)
                self.living = self.living[1:]
            else:
                self._ask(self.rng.choice((*self.living, None)))
            for site in self.living:  # what is left to be published is, in seconds, not in days
                site.container.background_commit()
        self.days += self.rng.choice((1, 4, 8, 10))

    def _die_late(self, site: Site, other: Site) -> None:
        """Its commit stalls until the other has said that nothing came of it; then nobody looks."""

        def stall(point: str, container: Container) -> None:
            if container is site.container and point == "commit.before":
                self.cloud.at = lambda point, container: None
                self._ask(other)
                self.cloud.at = die

        def die(point: str, container: Container) -> None:
            if container is site.container and point == "commit.after":
                raise Killed(point)

        self._ask(other)  # so that each voice has one doubt at most
        self.cloud.at = stall
        owner = self.rng.choice(self.owners)
        owner.work(site, 1)
        self.cloud.at = self._at
        site.container.kill()
        self.kills += 1
        if owner.doubts:  # it was refused before its commit
            self._ask(other)

    def _at(self, point: str, container: Container) -> None:
        super()._at(point, container)
        at_commit = point == "commit.after" and container.name == "registry"
        if at_commit and not self.quiet and self.rng.random() < COMMIT_KILLS:
            raise Killed(point)

    def _lives_on(self, site: Site) -> bool:
        return site.container.alive and self.rng.random() < 0.8

    def _ask(self, site: Site | None) -> None:
        """One that lives on knows what came of others when it has refused, or looked for long."""
        if site is None:
            return self.check().container.kill()
        if self.rng.random() < 0.5:
            with suppress(VoiceNotFound):
                site.store.delete("nobody", None)
        else:
            until_s = time.monotonic() + 2 * snapshot_database.EXPIRY_S
            while time.monotonic() < until_s:
                with suppress(VoiceNotFound):
                    site.store.get("nobody")
        for owner in self.owners:
            owner.check(site.store)


class Unsealed(SnapshotDatabase):
    def _seal(self) -> None:
        """Leaves what may come late above the newest state."""


class RightForAWeek(VolumeStore):
    database = Unsealed
