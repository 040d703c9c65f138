"""The vendor's newest client, and its typed models as the judge of answers."""

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from alibabacloud_iot20180120 import models
from alibabacloud_openapi_util.client import Client as OpenApiUtil
from alibabacloud_tea_openapi.client import Client
from alibabacloud_tea_openapi.models import Config, OpenApiRequest, Params
from alibabacloud_tea_util.models import ExtendsParameters, RuntimeOptions

from auditor.client.operations import API_VERSION
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT

OPERATIONS = (
    "BatchGetDeviceState", "BatchQueryDeviceDetail", "ListOTAFirmware", "ListOTAJobByFirmware",
    "ListOTAModuleByProduct", "ListOTAModuleVersionsByDevice", "ListOTATaskByJob", "QueryDevice", "QueryDeviceBySQL",
    "QueryProductList",
)  # fmt: skip

PASCAL_CASE = {
    "OTAModules": "OTAModules", "activeTime": "ActiveTime", "groupId": "GroupId", "groups": "Groups",
    "tagName": "TagName", "tagValue": "TagValue", "totalCount": "TotalCount",
    "aliasName": "AliasName", "asAddress": "AsAddress", "authType": "AuthType", "code": "Code",
    "currentPage": "CurrentPage", "data": "Data", "dataFormat": "DataFormat", "desc": "Desc",
    "description": "Description", "destVersion": "DestVersion", "deviceCount": "DeviceCount", "deviceId": "DeviceId", "deviceInfo": "DeviceInfo",
    "deviceName": "DeviceName", "deviceSecret": "DeviceSecret", "deviceStatus": "DeviceStatus",
    "deviceStatusList": "DeviceStatusList", "deviceType": "DeviceType", "errorMessage": "ErrorMessage",
    "firmwareDesc": "FirmwareDesc", "firmwareId": "FirmwareId", "firmwareInfo": "FirmwareInfo",
    "firmwareName": "FirmwareName", "firmwareSign": "FirmwareSign", "firmwareSize": "FirmwareSize",
    "firmwareVersion": "FirmwareVersion", "gmtActive": "GmtActive", "gmtCreate": "GmtCreate",
    "gmtModified": "GmtModified", "iotId": "IotId", "jobId": "JobId",
    "jobStatus": "JobStatus", "jobType": "JobType", "key": "Key", "lastOnlineTime": "LastOnlineTime", "list": "List",
    "moduleName": "ModuleName", "moduleVersion": "ModuleVersion", "nextToken": "NextToken", "nickname": "Nickname",
    "nodeType": "NodeType", "otaTagDTO": "OtaTagDTO", "page": "Page", "pageCount": "PageCount", "pageSize": "PageSize",
    "productInfo": "ProductInfo", "productKey": "ProductKey", "productName": "ProductName", "progress": "Progress",
    "region": "Region", "requestId": "RequestId", "selectionType": "SelectionType", "signMethod": "SignMethod",
    "simpleFirmwareInfo": "SimpleFirmwareInfo", "simpleOTAJobInfo": "SimpleOTAJobInfo",
    "simpleOTAModuleInfo": "SimpleOTAModuleInfo", "simpleOTATaskInfo": "SimpleOTATaskInfo", "srcVersion": "SrcVersion",
    "status": "Status", "success": "Success", "tags": "Tags", "targetSelection": "TargetSelection",
    "taskDesc": "TaskDesc", "taskId": "TaskId", "taskStatus": "TaskStatus", "timeout": "Timeout",
    "timestamp": "Timestamp", "total": "Total", "type": "Type", "utcActive": "UtcActive", "utcCreate": "UtcCreate",
    "utcEndTime": "UtcEndTime", "utcModified": "UtcModified", "utcStartTime": "UtcStartTime", "value": "Value",
}  # fmt: skip
"""Every name of Tuya's dialect, and of Alibaba's: written down, so that a wrong name in either is an error."""


NOTHING = object()
"""In place of a member that is not there."""


def to_pascal_case(value: Any) -> Any:
    if isinstance(value, dict):
        return {PASCAL_CASE.get(name, f"unknown {name}"): to_pascal_case(each) for name, each in value.items()}
    return [to_pascal_case(each) for each in value] if isinstance(value, list) else value


def send(
    port: int,
    action: str,
    parameters: Mapping[str, object],
    *,
    method: str = "POST",
    account: SimulatedAccount = DEFAULT_ACCOUNT,
    secret: str | None = None,
    **common: str,
) -> Any:
    """Send a request with the vendor's client and return the answer's body; ``common`` replaces common parameters."""
    config = Config(
        access_key_id=account.access_key_id,
        access_key_secret=secret or account.secret.reveal(),
        endpoint=f"127.0.0.1:{port}",
        protocol="http",
        region_id="cn-shanghai",
        signature_algorithm="v2",  # the signature in the query
    )
    described = Params(
        action=action,
        version=API_VERSION,
        protocol="HTTP",
        pathname="/",
        method=method,
        auth_type="AK",
        style="RPC",
        req_body_type="formData",
        body_type="json",
    )
    runtime = RuntimeOptions(extends_parameters=ExtendsParameters(queries=common))
    request = OpenApiRequest(query=OpenApiUtil.query(request_model(action, parameters).to_map()))
    return Client(config).call_api(described, request, runtime)["body"]


def request_model(action: str, parameters: Mapping[str, object]) -> Any:
    return getattr(models, f"{action}Request")().from_map(dict(parameters))


def body_model(action: str) -> Any:
    return getattr(models, f"{action}ResponseBody")


def model_errors(model: Any, answer: Any) -> list[str]:
    """What a model of the vendor does not accept of an answer: another type, an unknown member, anything lost."""
    try:
        parsed = model().from_map(answer)
        errors = list(_type_errors(parsed, model.__name__))
        returned = parsed.to_map()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return [f"{model.__name__}: {error!r}"]
    return errors or list(_differences(returned, answer, model.__name__))


def _differences(returned: Any, answer: Any, path: str) -> Iterator[str]:
    """What a model has lost or invented; it invents the array that an answer does not have."""
    if isinstance(returned, dict) and isinstance(answer, dict):
        for name in {**returned, **answer}:
            if name in answer or returned[name] != []:
                yield from _differences(returned.get(name, NOTHING), answer.get(name, NOTHING), f"{path}.{name}")
    elif isinstance(returned, list) and isinstance(answer, list) and len(returned) == len(answer):
        for number, pair in enumerate(zip(returned, answer, strict=True)):
            yield from _differences(*pair, f"{path}[{number}]")
    elif NOTHING in (returned, answer) or type(returned) is not type(answer) or returned != answer:
        yield f"{path}: {answer!r} became {returned!r}"


def _type_errors(value: Any, path: str) -> Iterator[str]:
    for name, annotation in member_types(value.__class__).items():
        yield from _member_errors(getattr(value, name), annotation, f"{path}.{name}")


def _member_errors(member: Any, annotation: Any, path: str) -> Iterator[str]:
    if member is None:
        return
    if get_origin(annotation) is list:
        if type(member) is not list:
            yield f"{path}: {member!r} is no list"
            return
        for number, item in enumerate(member):
            if item is None:
                yield f"{path}[{number}] is null"
            yield from _member_errors(item, get_args(annotation)[0], f"{path}[{number}]")
    elif type(member) is not annotation:  # not isinstance: True is an int
        yield f"{path}: {member!r} is no {annotation.__name__}"
    elif hasattr(member, "from_map"):
        yield from _type_errors(member, path)


@cache
def member_types(model: Any) -> dict[str, Any]:
    parameters = inspect.signature(model).parameters.values()
    return {parameter.name: parameter.annotation for parameter in parameters}


def member_paths(model: Any, path: str = "") -> set[str]:
    """Every member of a model by its name on the wire, as ``Data.DeviceInfo.DeviceName``."""
    names = re.findall(r"result\['(\w+)'\]", inspect.getsource(model.to_map))
    paths = set[str]()
    for name, annotation in zip(dict.fromkeys(names), member_types(model).values(), strict=True):
        inner = get_args(annotation)[0] if get_origin(annotation) is list else annotation
        paths |= member_paths(inner, f"{path}{name}.") if hasattr(inner, "from_map") else {path + name}
    return paths


def given_paths(answer: Any, path: str = "") -> set[str]:
    """Every member of an answer that is no object or array of objects, in the same form."""
    if isinstance(answer, list):
        return set[str]().union(*(given_paths(item, path) for item in answer))
    if isinstance(answer, dict):
        return set[str]().union(*(given_paths(item, f"{path}{name}.") for name, item in answer.items()))
    return {path.removesuffix(".")}
