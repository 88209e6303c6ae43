"""A folder that holds the model of a deployment: brought there, described, found again. No torch.

`model.json` is written last. It marks that all of the model is there, and says what it is to
whoever has no use for the weights.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from inference.models.catalog import LocatedModel, download_into, parse
from registry.contract import ModelRef
from registry.errors import ModelUnavailable
from registry.storage.blobs import write_atomically

MARKER = "model.json"
HOW = "`voices deploy model` brings it there."


@dataclass(frozen=True)
class Marker:
    """The content of model.json."""

    source: str
    model_id: str
    revision: str
    languages: list[str]
    sample_rate: int  # Hz
    folder: str  # under the one of the marker

    @classmethod
    def of(cls, model: LocatedModel, root: Path) -> "Marker":
        return cls(
            source=model.source,
            model_id=model.ref.id,
            revision=model.ref.revision,
            languages=list(model.languages),
            sample_rate=model.sample_rate,
            folder=model.path.relative_to(root).as_posix(),
        )

    def located(self, root: Path) -> LocatedModel:
        ref, languages = ModelRef(self.model_id, self.revision), tuple(self.languages)
        return LocatedModel(self.source, ref, root / self.folder, languages, self.sample_rate)


def bring(root: Path, spec: str, commit: Callable[[], object]) -> Marker:
    """Download or make the model `spec`, check it, then mark it as the one in `root`.

    `commit` is called before the mark and after it, so that nobody sees it without the model; and
    after a failure, since the next try goes on with what came.
    """
    try:
        marker = Marker.of(download_into(root, spec), root)
    finally:
        commit()
    write_atomically(root / MARKER, json.dumps(asdict(marker), indent=1).encode())
    commit()
    return marker


def marked(root: Path, spec: str) -> LocatedModel:
    """Find the model in `root`; ModelUnavailable unless it is all there, and the wanted one."""
    wanted = str(parse(spec))
    try:
        found = Marker(**json.loads((root / MARKER).read_bytes()))
    except FileNotFoundError as error:
        raise ModelUnavailable(f"The model {wanted} is not on its Volume. {HOW}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelUnavailable(f"{MARKER} on the model's Volume is damaged. {HOW}") from error
    if found.source != wanted:
        raise ModelUnavailable(f"The Volume holds the model {found.source}, not {wanted}. {HOW}")
    return found.located(root)
