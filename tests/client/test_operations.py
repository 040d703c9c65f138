"""ListOTAModuleVersionsByDevice as the seed's page has it."""

import pytest

from auditor.client.operations import API_VERSION, LIST_OTA_MODULE_VERSIONS_BY_DEVICE, module_version_params
from auditor.models import Device

OPERATION = LIST_OTA_MODULE_VERSIONS_BY_DEVICE


def test_the_operation_is_the_one_of_the_page() -> None:
    assert OPERATION.name == "ListOTAModuleVersionsByDevice"
    assert API_VERSION == "2018-01-20"
    assert OPERATION.page_size == 200
    assert OPERATION.calls_per_second == 10


def test_a_device_is_named_by_product_and_name() -> None:
    assert module_version_params(Device("a", "k1nhvyl", "device1", None), 3, 10) == {
        "CurrentPage": "3",
        "PageSize": "10",
        "ProductKey": "k1nhvyl",
        "DeviceName": "device1",
    }


@pytest.mark.parametrize(("key", "name"), [("k1nhvyl", "device1"), (None, None), ("k1nhvyl", None), (None, "device1")])
def test_a_known_iot_id_is_the_only_name_that_is_sent(key: str | None, name: str | None) -> None:
    assert module_version_params(Device("a", key, name, "OZs5"), 1, 200) == {
        "CurrentPage": "1",
        "PageSize": "200",
        "IotId": "OZs5",
    }


@pytest.mark.parametrize("device", [Device("a", "k", "n", None), Device("a", None, None, "i")])
def test_only_documented_parameters_are_sent_and_all_required_ones(device: Device) -> None:
    sent = module_version_params(device, 1, 200).keys()
    assert {"CurrentPage", "PageSize"} <= sent <= {"CurrentPage", "PageSize", "ProductKey", "DeviceName", "IotId"}
