"""What the fake Modal control plane knows of Apps: their Functions, images, containers and calls.

Each method in capitals answers the RPC of that name. Nothing runs: a call is answered by the Python
function that the test has put into `answers` for it.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from modal._serialization import deserialize_data_format, serialize_data_format
from modal_files import identify
from modal_proto import api_pb2 as pb

WORKSPACE = "ann"
ENVIRONMENT = "main"
SUCCESS = pb.GenericResult.GENERIC_STATUS_SUCCESS
FAILURE = pb.GenericResult.GENERIC_STATUS_FAILURE

M = TypeVar("M", bound=Message)


def shared(message: Message, kind: type[M], **more: Any) -> M:
    """A message of another kind, with the fields that both kinds have."""
    wanted = kind.DESCRIPTOR.fields_by_name
    common = {field.name: value for field, value in message.ListFields() if field.name in wanted}
    made: M = kind(**common | more)
    return made


@dataclass
class App:
    id: str
    name: str
    state: pb.AppState.ValueType = pb.APP_STATE_INITIALIZING
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    containers: list[str] = field(default_factory=list)  # ids, as if started long ago
    logs: list[str] = field(default_factory=list)
    versions: int = 0
    deployed_at: float = 0

    @property
    def deployed(self) -> bool:
        return self.state == pb.APP_STATE_DEPLOYED

    def handle(self) -> pb.AppHandleMetadata:
        lifecycle = pb.AppLifecycle(
            app_state=self.state, version=self.versions, created_at=1, deployed_at=self.deployed_at
        )
        return pb.AppHandleMetadata(
            description=self.name,
            app_id=self.id,
            environment_name=ENVIRONMENT,
            lifecycle=lifecycle,
            functions=self.function_ids,
        )

    def log_batch(self) -> pb.TaskLogsBatch:
        kind = pb.FILE_DESCRIPTOR_STDOUT
        items = [pb.TaskLogs(data=f"{line}\n", file_descriptor=kind) for line in self.logs]
        return pb.TaskLogsBatch(items=items, app_done=True)


class Apps:
    def __init__(self) -> None:
        self.apps: dict[str, App] = {}  # the last of each name
        self._apps: dict[str, App] = {}  # by id

    def _deployed(self, name: str) -> App:
        return {app.name: app for app in self.apps.values() if app.deployed}[name]

    def AppCreate(self, request: pb.AppCreateRequest) -> Message:
        app = App(identify("ap", request.description, str(len(self._apps))), request.description)
        self._apps[app.id] = app
        if request.app_state == pb.APP_STATE_INITIALIZING:  # for `modal run` it is no name
            self.apps[app.name] = app
        return pb.AppCreateResponse(app_id=app.id, app_page_url=f"https://modal.com/id/{app.id}")

    def AppGetByDeploymentName(self, request: pb.AppGetByDeploymentNameRequest) -> Message:
        answer = pb.AppGetByDeploymentNameResponse(environment_name=ENVIRONMENT)
        if app := self.apps.get(request.name):
            answer.lifecycle.CopyFrom(app.handle().lifecycle)
            answer.app_id, answer.previous_app_id = (app.id, "") if app.deployed else ("", app.id)
        return answer

    def AppGetOrCreate(self, request: pb.AppGetOrCreateRequest) -> Message:
        app = self._deployed(request.app_name)
        return pb.AppGetOrCreateResponse(app_id=app.id, handle_metadata=app.handle())

    def AppGetLayout(self, request: pb.AppGetLayoutRequest) -> Message:
        app = self._apps[request.app_id]
        layout = pb.AppLayout(function_ids=app.function_ids, class_ids=app.class_ids)
        return pb.AppGetLayoutResponse(app_layout=layout)

    def AppPublish(self, request: pb.AppPublishRequest) -> Message:
        app = self._apps[request.app_id]
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        app.state, app.versions, app.deployed_at = request.app_state, app.versions + 1, time.time()
        url = f"https://modal.com/apps/{WORKSPACE}/{ENVIRONMENT}/deployed/{app.name}"
        return pb.AppPublishResponse(url=url, deployed_at=app.deployed_at)

    def AppHeartbeat(self, request: pb.AppHeartbeatRequest) -> Message:
        return Empty()

    def AppClientDisconnect(self, request: pb.AppClientDisconnectRequest) -> Message:
        return Empty()

    def AppList(self, request: pb.AppListRequest) -> Message:
        items = [
            pb.AppListResponse.AppListItem(
                app_id=app.id, name=app.name, state=app.state, created_at=1, metadata=app.handle()
            )
            for app in self._apps.values()
        ]
        return pb.AppListResponse(apps=items)

    def AppStop(self, request: pb.AppStopRequest) -> Message:
        app = self._apps[request.app_id]
        app.state = pb.APP_STATE_STOPPED
        app.containers.clear()
        return Empty()

    def AppGetLogs(self, request: pb.AppGetLogsRequest) -> Iterable[Message]:
        return [self._apps[request.app_id].log_batch()]

    def AppFetchLogs(self, request: pb.AppFetchLogsRequest) -> Message:
        return pb.AppFetchLogsResponse(batches=[self._apps[request.app_id].log_batch()])

    def TaskList(self, request: pb.TaskListRequest) -> Message:
        containers = self._apps[request.app_id].containers
        tasks = [pb.TaskStats(task_id=name, started_at=1, enqueued_at=1) for name in containers]
        return pb.TaskListResponse(tasks=tasks)

    def ContainerStop(self, request: pb.ContainerStopRequest) -> Message:
        for app in self._apps.values():
            app.containers = [name for name in app.containers if name != request.task_id]
        return pb.ContainerStopResponse()


@dataclass
class Outcome:
    """Of a call: what it returned or raised, and what it had yielded before."""

    end: object
    items: list[object] = field(default_factory=list)
    heard: int = 0  # items that have come to the caller

    def after(self, index: int) -> list[Message]:
        self.heard = index
        kind = pb.DATA_FORMAT_PICKLE
        return [
            pb.DataChunk(index=number, data_format=kind, data=serialize_data_format(item, kind))
            for number, item in enumerate(self.items, 1)
            if number > index
        ]

    def output(self) -> pb.FunctionGetOutputsResponse:
        """Nothing until every item is heard: an exception would overtake them."""
        if self.heard < len(self.items):
            return pb.FunctionGetOutputsResponse(num_unfinished_inputs=1)
        done = isinstance(self.end, pb.GeneratorDone)
        kind = pb.DATA_FORMAT_GENERATOR_DONE if done else pb.DATA_FORMAT_PICKLE
        result = pb.GenericResult(status=SUCCESS, data=serialize_data_format(self.end, kind))
        if isinstance(self.end, Exception):
            result.status, result.exception = FAILURE, repr(self.end)
        item = pb.FunctionGetOutputsItem(result=result, data_format=kind)
        return pb.FunctionGetOutputsResponse(outputs=[item])


class Functions(Apps):
    def __init__(self) -> None:
        super().__init__()
        self.images: dict[str, list[pb.Image]] = {}  # the layers by id, the lowest first
        self.choices: dict[str, list[str]] = {}  # of GPUs, by tag
        self.stats: dict[str, pb.FunctionStats] = {}  # by tag
        self.answers: dict[str, Callable[..., Any]] = {}  # by tag or `Class.method`, to be called
        self._functions: dict[str, tuple[App, pb.Function]] = {}  # by id
        self._classes = 0
        self._outcomes: dict[str, Outcome] = {}  # of calls

    @property
    def functions(self) -> dict[str, pb.Function]:
        """What was created last under each tag: `speak`, or `Speaker.*` for a class."""
        return {function.function_name: function for _, function in self._functions.values()}

    def commands(self, image_id: str) -> list[str]:
        """The Dockerfile of all layers, from the first line to the last."""
        return [command for layer in self.images[image_id] for command in layer.dockerfile_commands]

    def ImageGetOrCreate(self, request: pb.ImageGetOrCreateRequest) -> Message:
        """Built at once, so that nobody has to join the build."""
        image_id = identify("im", request.image.SerializeToString(deterministic=True).hex())
        bases = [self.images[base.image_id] for base in request.image.base_images]
        self.images[image_id] = [*(layer for base in bases for layer in base), request.image]
        built = pb.GenericResult(status=SUCCESS)
        metadata = pb.ImageMetadata(image_builder_version=request.builder_version)
        return pb.ImageGetOrCreateResponse(image_id=image_id, result=built, metadata=metadata)

    def FunctionPrecreate(self, request: pb.FunctionPrecreateRequest) -> Message:
        app = self._apps[request.app_id]
        function_id = request.existing_function_id or identify("fu", app.id, request.function_name)
        self._functions[function_id] = app, shared(request, pb.Function)
        handle = self._handle(function_id)
        return pb.FunctionPrecreateResponse(function_id=function_id, handle_metadata=handle)

    def FunctionCreate(self, request: pb.FunctionCreateRequest) -> Message:
        """Of a choice of GPUs, the first is the one that is free."""
        ranked = [ranked.function for ranked in request.function_data.ranked_functions]
        function = ranked[0] if ranked else request.function
        function_id = request.existing_function_id
        self._functions[function_id] = self._apps[request.app_id], function
        self.choices[function.function_name] = [
            choice.resources.gpu_config.gpu_type for choice in ranked or [function]
        ]
        return pb.FunctionCreateResponse(
            function_id=function_id,
            function=function,
            function_data=self._data(function_id),
            handle_metadata=self._handle(function_id),
        )

    def _web_url(self, function_id: str) -> str:
        app, function = self._functions[function_id]
        name = f"{WORKSPACE}--{app.name}-{function.function_name}".replace("_", "-")
        return f"https://{name}.modal.run" if function.webhook_config.type else ""

    def _handle(self, function_id: str) -> pb.FunctionHandleMetadata:
        app, function = self._functions[function_id]
        methods = {
            name: shared(method, pb.FunctionHandleMetadata, is_method=True, use_method_name=name)
            for name, method in function.method_definitions.items()
        }
        return shared(
            function,
            pb.FunctionHandleMetadata,
            app_id=app.id,
            web_url=self._web_url(function_id),
            definition_id=identify("de", function_id),
            method_handle_metadata=methods,
        )

    def _data(self, function_id: str) -> pb.FunctionData:
        function, url = self._functions[function_id][1], self._web_url(function_id)
        ranked = [pb.FunctionData.RankedFunction(rank=0, function=function)]
        return shared(function, pb.FunctionData, web_url=url, ranked_functions=ranked)

    def ClassCreate(self, request: pb.ClassCreateRequest) -> Message:
        self._classes += 1
        class_id = request.existing_class_id or identify("cs", str(self._classes))
        return pb.ClassCreateResponse(class_id=class_id, handle_metadata=pb.ClassHandleMetadata())

    def ClassGet(self, request: pb.ClassGetRequest) -> Message:
        class_id = self._deployed(request.app_name).class_ids[request.object_tag]
        return pb.ClassGetResponse(class_id=class_id, handle_metadata=pb.ClassHandleMetadata())

    def FunctionGet(self, request: pb.FunctionGetRequest) -> Message:
        function_id = self._deployed(request.app_name).function_ids[request.object_tag]
        handle, data = self._handle(function_id), self._data(function_id)
        return pb.FunctionGetResponse(
            function_id=function_id, handle_metadata=handle, function=data
        )

    def FunctionGetCurrentStats(self, request: pb.FunctionGetCurrentStatsRequest) -> Message:
        tag = self._functions[request.function_id][1].function_name
        return self.stats.get(tag, pb.FunctionStats())

    def FunctionUpdateSchedulingParams(
        self, request: pb.FunctionUpdateSchedulingParamsRequest
    ) -> Message:
        settings = self._functions[request.function_id][1].autoscaler_settings
        settings.MergeFrom(request.settings)
        return pb.FunctionUpdateSchedulingParamsResponse(current_settings=settings)

    def FunctionMap(self, request: pb.FunctionMapRequest) -> Message:
        function = self._functions[request.function_id][1]
        call_id = identify("fc", str(len(self._outcomes)))
        [item] = request.pipelined_inputs
        self._outcomes[call_id] = self._play(function, item.input)
        taken = pb.FunctionPutInputsResponseItem(input_id=identify("in", call_id))
        return pb.FunctionMapResponse(function_call_id=call_id, pipelined_inputs=[taken])

    def _play(self, function: pb.Function, given: pb.FunctionInput) -> Outcome:
        """A generator's last item may be an exception, which then ends it."""
        name = given.method_name
        kind = function.method_definitions[name].function_type if name else function.function_type
        args, kwargs = deserialize_data_format(given.args, given.data_format, None)
        answer = self.answers[function.function_name.replace("*", name)](*args, **kwargs)
        if kind != pb.Function.FUNCTION_TYPE_GENERATOR:
            return Outcome(answer)
        items = list(answer)
        broken = bool(items) and isinstance(items[-1], Exception)
        end = items.pop() if broken else pb.GeneratorDone(items_total=len(items))
        return Outcome(end, items)

    def FunctionCallCancel(self, request: pb.FunctionCallCancelRequest) -> Message:
        return Empty()

    def FunctionGetOutputs(self, request: pb.FunctionGetOutputsRequest) -> Message:
        return self._outcomes[request.function_call_id].output()

    def FunctionCallGetDataOut(self, request: pb.FunctionCallGetDataRequest) -> Iterable[Message]:
        return self._outcomes[request.function_call_id].after(request.last_index)
