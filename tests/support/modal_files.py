"""What the fake Modal control plane keeps by name, in memory: Volumes, mounts, Dicts, Secrets.

Each method in capitals answers the RPC of that name. What came by gRPC and what came by HTTP lies
together under its SHA-256 or blob id. It knows nothing of Apps, and nothing is ever really mounted:
a Volume here has no commit and no reload.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Generic, Protocol, TypeVar

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

BLOCK_BYTES = 8 * 1024 * 1024  # what a Volume's file is cut into by this client


def identify(prefix: str, *parts: str) -> str:
    """An id of the form the client expects, the same for the same parts."""
    return f"{prefix}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:22]}"


class Thing(Protocol):
    id: str


class GetOrCreate(Protocol):
    deployment_name: str
    object_creation_type: pb.ObjectCreationType.ValueType


T = TypeVar("T", bound=Thing)


class Shelf(dict[str, T], Generic[T]):
    """Things of one kind by name. A thing that is not there is a KeyError, so NOT_FOUND."""

    def __init__(self, make: Callable[[str], T]) -> None:
        super().__init__()
        self._make = make

    def take(self, request: GetOrCreate) -> T:
        """The thing of that name; made, or refused because it is there, as the request says."""
        name = request.deployment_name or f"unnamed-{len(self)}"
        if name not in self:
            if request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise KeyError(name)
            self[name] = self._make(name)
        elif request.object_creation_type == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"{name} is there already.")
        return self[name]

    def by_id(self, identifier: str) -> T:
        return {thing.id: thing for thing in self.values()}[identifier]


@dataclass
class Volume:
    id: str
    name: str
    version: pb.VolumeFsVersion.ValueType = pb.VOLUME_FS_VERSION_V1
    files: dict[str, bytes] = field(default_factory=dict)  # by path, without a slash in front
    modes: dict[str, int] = field(default_factory=dict)

    def put(self, path: str, content: bytes, mode: int, keep: bool) -> None:
        name = path.lstrip("/")
        if keep and name in self.files:
            raise GRPCError(Status.ALREADY_EXISTS, f"{name} is there already.")
        self.files[name] = content
        self.modes[name] = mode

    def entries(self, path: str, recursive: bool) -> list[pb.FileEntry]:
        """What is at or below a path, folders included, sorted."""
        root = PurePosixPath(path.strip("/"))
        files = {PurePosixPath(name): len(content) for name, content in self.files.items()}
        tree = {folder for name in files for folder in name.parents} | files.keys()
        if root.name and root not in tree:
            raise KeyError(path)
        within = (name for name in tree if root in (name.parents if recursive else [name.parent]))
        names = [root] if root in files else sorted(name for name in within if name.name)
        return [_entry(name, files.get(name)) for name in names]


def _entry(path: PurePosixPath, size: int | None) -> pb.FileEntry:
    kind = pb.FileEntry.DIRECTORY if size is None else pb.FileEntry.FILE
    return pb.FileEntry(path=str(path), type=kind, size=size or 0, mtime=1)


@dataclass
class Dict:
    id: str
    entries: dict[bytes, bytes] = field(default_factory=dict)  # pickled by the client


@dataclass
class Secret:
    id: str
    values: dict[str, str] = field(default_factory=dict)
    required_keys: list[str] = field(default_factory=list)  # with which it was last asked for


class Files:
    """Named things; `http_url` is where blobs and the blocks of Volumes are put and fetched."""

    def __init__(self, http_url: str) -> None:
        self.http_url = http_url
        self.volumes: Shelf[Volume] = Shelf(lambda name: Volume(identify("vo", name), name))
        self.dicts: Shelf[Dict] = Shelf(lambda name: Dict(identify("di", name)))
        self.secrets: Shelf[Secret] = Shelf(lambda name: Secret(identify("st", name)))
        self._forgotten: set[str] = set()  # names of secrets
        self._contents: dict[str, bytes] = {}  # by SHA-256, or blob id
        self._mounts: dict[str, dict[str, str]] = {}  # names of files and their SHA-256, by id

    def uploaded(self, *mount_ids: str) -> dict[str, bytes]:
        """Every file of those mounts, by its path in the container."""
        named = [item for mount_id in mount_ids for item in self._mounts[mount_id].items()]
        return {name: self._contents[sha256] for name, sha256 in named}

    def forget_secret(self, name: str) -> None:
        """Until it is created: any other secret exists as soon as somebody asks for it."""
        self.secrets.pop(name, None)
        self._forgotten.add(name)

    def MountBatchedCheckExistence(self, request: pb.MountBatchedCheckExistenceRequest) -> Message:
        missing = [key for key in request.sha256_hex_hashes if key not in self._contents]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def MountPutFile(self, request: pb.MountPutFileRequest) -> Message:
        match request.WhichOneof("data_oneof"):
            case "data":
                self._contents[request.sha256_hex] = request.data
            case "data_blob_id":
                self._contents[request.sha256_hex] = self._contents[request.data_blob_id]
        return pb.MountPutFileResponse(exists=request.sha256_hex in self._contents)

    def MountGetOrCreate(self, request: pb.MountGetOrCreateRequest) -> Message:
        files = {file.filename: file.sha256_hex for file in request.files}
        mount_id = identify("mo", request.deployment_name, repr(sorted(files.items())))
        self._mounts[mount_id] = files
        handle = pb.MountHandleMetadata(content_checksum_sha256_hex=mount_id)
        return pb.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=handle)

    def VolumeGetOrCreate(self, request: pb.VolumeGetOrCreateRequest) -> Message:
        is_new = request.deployment_name not in self.volumes
        volume = self.volumes.take(request)
        if is_new and request.version:
            volume.version = request.version
        metadata = pb.VolumeMetadata(version=volume.version, name=volume.name)
        return pb.VolumeGetOrCreateResponse(volume_id=volume.id, metadata=metadata)

    def VolumeListFiles(self, request: pb.VolumeListFilesRequest) -> Iterable[Message]:
        entries = self.volumes.by_id(request.volume_id).entries(request.path, request.recursive)
        return [pb.VolumeListFilesResponse(entries=entries)]

    def VolumeListFiles2(self, request: pb.VolumeListFiles2Request) -> Iterable[Message]:
        entries = self.volumes.by_id(request.volume_id).entries(request.path, request.recursive)
        return [pb.VolumeListFiles2Response(entries=entries)]

    def VolumePutFiles(self, request: pb.VolumePutFilesRequest) -> Message:
        volume = self.volumes.by_id(request.volume_id)
        keep = request.disallow_overwrite_existing_files
        for file in request.files:
            volume.put(file.filename, self._contents[file.sha256_hex], file.mode, keep)
        return Empty()

    def VolumePutFiles2(self, request: pb.VolumePutFiles2Request) -> Message:
        """The client asks, brings what is missing by HTTP, and asks again."""
        missing = [
            pb.VolumePutFiles2Response.MissingBlock(
                file_index=i, block_index=j, put_url=self._url(block.contents_sha256.hex())
            )
            for i, file in enumerate(request.files)
            for j, block in enumerate(file.blocks)
            if block.contents_sha256.hex() not in self._contents
        ]
        volume = self.volumes.by_id(request.volume_id)
        keep = request.disallow_overwrite_existing_files
        for file in [] if missing else request.files:
            volume.put(file.path, b"".join(self._blocks(file)), file.mode, keep)
        return pb.VolumePutFiles2Response(missing_blocks=missing)

    def _blocks(self, file: pb.VolumePutFiles2Request.File) -> Iterable[bytes]:
        """Zeros at the end of a block need not be sent."""
        for number, block in enumerate(file.blocks):
            size = min(BLOCK_BYTES, file.size - number * BLOCK_BYTES)
            yield self._contents[block.contents_sha256.hex()].ljust(size, b"\0")

    def VolumeGetFile2(self, request: pb.VolumeGetFile2Request) -> Message:
        content = self.volumes.by_id(request.volume_id).files[request.path.lstrip("/")]
        blocks = [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
        keys = [hashlib.sha256(block).hexdigest() for block in blocks]
        self._contents.update(zip(keys, blocks, strict=True))
        urls = [self._url(key) for key in keys]
        return pb.VolumeGetFile2Response(get_urls=urls, size=len(content), len=len(content))

    def VolumeRemoveFile(self, request: pb.VolumeRemoveFileRequest) -> Message:
        volume = self.volumes.by_id(request.volume_id)
        for entry in volume.entries(request.path, request.recursive):
            volume.files.pop(entry.path, None)
        return Empty()

    def BlobCreate(self, request: pb.BlobCreateRequest) -> Message:
        blob_id = identify("bl", request.content_sha256_base64)
        urls = pb.UploadUrlList(items=[self._url(blob_id)])
        return pb.BlobCreateResponse(blob_ids=[blob_id], upload_urls=urls)

    def BlobGet(self, request: pb.BlobGetRequest) -> Message:
        return pb.BlobGetResponse(download_url=self._url(request.blob_id))

    def _url(self, key: str) -> str:
        return f"{self.http_url}/{key}"

    async def receive(self, request: web.Request) -> web.Response:
        content = await request.content.read()
        self._contents[request.match_info["key"]] = content
        return web.Response(headers={"ETag": hashlib.md5(content).hexdigest()})

    async def send(self, request: web.Request) -> web.Response:
        return web.Response(body=self._contents[request.match_info["key"]])

    def SecretGetOrCreate(self, request: pb.SecretGetOrCreateRequest) -> Message:
        name, kind = request.deployment_name, request.object_creation_type
        if kind != pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            self._forgotten.discard(name)
        elif name not in self._forgotten:
            self.secrets.setdefault(name, Secret(identify("st", name)))
        secret = self.secrets.take(request)
        secret.values.update(request.env_dict)
        secret.required_keys = list(request.required_keys)
        metadata = pb.SecretMetadata(name=name, keys=secret.values)
        return pb.SecretGetOrCreateResponse(secret_id=secret.id, metadata=metadata)

    def DictGetOrCreate(self, request: pb.DictGetOrCreateRequest) -> Message:
        metadata = pb.DictMetadata(name=request.deployment_name)
        return pb.DictGetOrCreateResponse(dict_id=self.dicts.take(request).id, metadata=metadata)

    def DictUpdate(self, request: pb.DictUpdateRequest) -> Message:
        entries = self.dicts.by_id(request.dict_id).entries
        updates = {update.key: update.value for update in request.updates}
        if request.if_not_exists:
            updates = {key: value for key, value in updates.items() if key not in entries}
        entries.update(updates)
        return pb.DictUpdateResponse(created=bool(updates))

    def DictGet(self, request: pb.DictGetRequest) -> Message:
        value = self.dicts.by_id(request.dict_id).entries.get(request.key)
        return pb.DictGetResponse(found=value is not None, value=value)

    def DictPop(self, request: pb.DictPopRequest) -> Message:
        value = self.dicts.by_id(request.dict_id).entries.pop(request.key, None)
        return pb.DictPopResponse(found=value is not None, value=value)

    def DictContains(self, request: pb.DictContainsRequest) -> Message:
        found = request.key in self.dicts.by_id(request.dict_id).entries
        return pb.DictContainsResponse(found=found)

    def DictLen(self, request: pb.DictLenRequest) -> Message:
        return pb.DictLenResponse(len=len(self.dicts.by_id(request.dict_id).entries))

    def DictContents(self, request: pb.DictContentsRequest) -> Iterable[Message]:
        entries = self.dicts.by_id(request.dict_id).entries
        return [pb.DictEntry(key=key, value=value) for key, value in entries.items()]
