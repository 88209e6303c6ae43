"""A container of Modal's in a process of its own: the real client's entrypoint runs the real class.

The fake control plane hands it what callers send, and hands them what it says. What Modal's own
servers do is not here: they place containers, take snapshots and keep Volumes.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import ROOT
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from modal_files import identify
from modal_proto import api_pb2 as pb
from modal_server import ModalServer

POLL_S = 0.02

ENTRYPOINT = """
import json, runpy, sys
from inference.modal import app as deploy
for name, value in json.loads(sys.argv[1]).items():
    setattr(deploy, name, value)
deploy.place = lambda: ("cpu", "float32")
runpy.run_module("modal._container_entrypoint", run_name="__main__")
"""


@dataclass
class Hosted:
    """One call, from its caller to its container and back."""

    call_id: str
    input: pb.FunctionInput
    kind: pb.FunctionCallInvocationType.ValueType
    taken: bool = False
    cancelled: bool = False
    chunks: list[pb.DataChunk] = field(default_factory=list)
    output: pb.FunctionPutOutputsItem | None = None

    @property
    def input_id(self) -> str:
        return identify("in", self.call_id)


class HostingServer(ModalServer):
    """Calls wait for a container, and go to it as soon as there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.hosted: dict[str, Hosted] = {}  # by call
        self.failures: list[pb.GenericResult] = []  # of a container's start or end
        self.ending = False
        self.mounts: dict[str, Path] = {}  # what a reload of a Volume brings, by its name

    def FunctionMap(self, request: pb.FunctionMapRequest) -> Message:
        call_id = identify("fc", "hosted", str(len(self.hosted)))
        [item] = request.pipelined_inputs
        call = Hosted(call_id, item.input, request.function_call_invocation_type)
        self.hosted[call_id] = call
        taken = pb.FunctionPutInputsResponseItem(input_id=call.input_id)
        return pb.FunctionMapResponse(function_call_id=call_id, pipelined_inputs=[taken])

    async def FunctionGetOutputs(
        self, request: pb.FunctionGetOutputsRequest
    ) -> AsyncIterator[Message]:
        call = self.hosted[request.function_call_id]
        while (output := call.output) is None:
            await asyncio.sleep(POLL_S)
        item = pb.FunctionGetOutputsItem(result=output.result, data_format=output.data_format)
        yield pb.FunctionGetOutputsResponse(outputs=[item])

    async def FunctionCallGetDataOut(
        self, request: pb.FunctionCallGetDataRequest
    ) -> AsyncIterator[Message]:
        call, sent = self.hosted[request.function_call_id], request.last_index
        while call.output is None or sent < len(call.chunks):
            for chunk in call.chunks[sent:]:
                yield chunk
            sent = len(call.chunks)
            await asyncio.sleep(POLL_S)

    def FunctionCallCancel(self, request: pb.FunctionCallCancelRequest) -> Message:
        self.hosted[request.function_call_id].cancelled = True
        return Empty()

    # What a container asks

    def ContainerHello(self, request: Empty) -> Message:
        return Empty()

    async def ContainerHeartbeat(
        self, request: pb.ContainerHeartbeatRequest
    ) -> AsyncIterator[Message]:
        """Answered at once where something is to be cancelled, as the real one is."""
        while not (ids := [call.input_id for call in self.hosted.values() if self._to_stop(call)]):
            await asyncio.sleep(POLL_S)
        yield pb.ContainerHeartbeatResponse(cancel_input_event=pb.CancelInputEvent(input_ids=ids))

    async def FunctionGetInputs(
        self, request: pb.FunctionGetInputsRequest
    ) -> AsyncIterator[Message]:
        while not (waiting := [call for call in self.hosted.values() if not call.taken]):
            if self.ending:
                stop = pb.FunctionGetInputsItem(kill_switch=True)
                yield pb.FunctionGetInputsResponse(inputs=[stop])
                return
            await asyncio.sleep(POLL_S)
        call = waiting[0]
        call.taken = True
        item = pb.FunctionGetInputsItem(
            input_id=call.input_id,
            input=call.input,
            function_call_id=call.call_id,
            function_call_invocation_type=call.kind,
        )
        yield pb.FunctionGetInputsResponse(inputs=[item])

    def FunctionCallPutDataOut(self, request: pb.FunctionCallPutDataRequest) -> Message:
        self.hosted[request.function_call_id].chunks.extend(request.data_chunks)
        return Empty()

    def FunctionPutOutputs(self, request: pb.FunctionPutOutputsRequest) -> Message:
        by_input = {call.input_id: call for call in self.hosted.values()}
        for item in request.outputs:
            by_input[item.input_id].output = item
        return Empty()

    def TaskResult(self, request: pb.TaskResultRequest) -> Message:
        self.failures.append(request.result)
        return Empty()

    def VolumeCommit(self, request: pb.VolumeCommitRequest) -> Message:
        return pb.VolumeCommitResponse(skip_reload=True)

    def VolumeReload(self, request: pb.VolumeReloadRequest) -> Message:
        volume = self.volumes.by_id(request.volume_id)
        for name, content in volume.files.items() if volume.name in self.mounts else ():
            path = self.mounts[volume.name] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return Empty()

    def _to_stop(self, call: Hosted) -> bool:
        return call.cancelled and call.taken and call.output is None


def start(server: HostingServer, folder: Path, **patched: Any) -> "subprocess.Popen[bytes]":
    """A container for the class `Voices` of the App that `server` has taken last."""
    app = [app for app in server._apps.values() if "Voices.*" in app.function_ids][-1]
    function_id = app.function_ids["Voices.*"]
    arguments = pb.ContainerArguments(
        task_id="ta-1",
        function_id=function_id,
        app_id=app.id,
        function_def=server.functions["Voices.*"],
        environment_name="main",
        app_layout=layout(server, app),
    )
    path = folder / "arguments"
    path.write_bytes(arguments.SerializeToString())
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VOICES_")}
    environ |= server.environ | {
        "MODAL_CONTAINER_ARGUMENTS_PATH": str(path),
        "MODAL_TASK_ID": "ta-1",
    }
    line = [sys.executable, "-c", ENTRYPOINT, json.dumps(patched)]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(line, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT)


def layout(server: HostingServer, app: Any) -> pb.AppLayout:
    """What a container is told of the App's objects."""
    functions = [
        pb.Object(object_id=key, function_handle_metadata=server._handle(key))
        for key in app.function_ids.values()
    ]
    classes = [
        pb.Object(object_id=key, class_handle_metadata=pb.ClassHandleMetadata())
        for key in app.class_ids.values()
    ]
    known = {item.object_id for item in (*functions, *classes)}
    dependencies = {
        dependency.object_id
        for tag in app.function_ids
        for dependency in server.functions[tag].object_dependencies
    }
    others = [
        pb.Object(object_id=key, volume_metadata=pb.VolumeMetadata())
        if key.startswith("vo-")
        else pb.Object(object_id=key)
        for key in sorted(dependencies - known)
    ]
    return pb.AppLayout(
        objects=[*functions, *classes, *others],
        function_ids=app.function_ids,
        class_ids=app.class_ids,
    )
