"""The operations BatchGetDeviceState and BatchQueryDeviceDetail: what many devices are doing, in one answer.

Sources: Tuya's and Alibaba's pages of the operations. Devices that do not exist are left out of both answers.
"""

from auditor.platform.operations import BATCH_GET_DEVICE_STATE, BATCH_QUERY_DEVICE_DETAIL
from auditor.simulator.answers import Document
from auditor.simulator.parameters import Parameters, devices_named, listed
from auditor.simulator.records import gmt_text, record_of, utc_text
from auditor.simulator.registry import Registry
from auditor.simulator.world import SimulatedDevice


class DeviceStates:
    """Answers BatchGetDeviceState."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answer(self, parameters: Parameters) -> Document:
        """The states of the devices that ``parameters`` name; raises Refused."""
        return {"deviceStatusList": {"deviceStatus": [self._entry(device) for device in self._named(parameters)]}}

    def _named(self, parameters: Parameters) -> list[SimulatedDevice]:
        """``IotId.N`` wins if both ways are given."""
        most = BATCH_GET_DEVICE_STATE.page_size
        if iot_ids := listed(parameters, "IotId", most):
            found = map(self._registry.find_by_iot_id, iot_ids)
            return [device for device in found if device is not None]
        return devices_named(parameters, self._registry, most)

    def _entry(self, device: SimulatedDevice) -> Document:
        record = record_of(device, self._registry.world.began)
        entry: Document = {
            "deviceName": device.device_name,
            "iotId": device.iot_id,
            "status": record.status,
            "timestamp": record.changed,
        }
        if record.online is not None:
            entry |= {"asAddress": record.address, "lastOnlineTime": record.online}
        return entry


class DeviceDetails:
    """Answers BatchQueryDeviceDetail."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answer(self, parameters: Parameters) -> Document:
        """The details of the devices that ``parameters`` name; raises Refused."""
        devices = devices_named(parameters, self._registry, BATCH_QUERY_DEVICE_DETAIL.page_size)
        return {"data": {"data": [self._entry(device) for device in devices]}}

    def _entry(self, device: SimulatedDevice) -> Document:
        record = record_of(device, self._registry.world.began)
        product = self._registry.world.products[self._registry.world.layout.place_of(device.index)[0]]
        default = [module.module_version for module in device.modules if module.module_name == "default"]
        return {
            "deviceName": device.device_name,
            "deviceSecret": record.secret,
            "firmwareVersion": default[0] if default else "",
            "gmtCreate": gmt_text(record.created),
            "iotId": device.iot_id,
            "nickname": "",
            "nodeType": 0,
            "productKey": device.product_key,
            "productName": product.product_name,
            "region": "cn-shanghai",
            "status": record.status,
            "utcCreate": utc_text(record.created),
        }
