import anyio
import pytest

from auditor.simulator.registry import Churn
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import PRODUCT_ERRORS, call, error_code

pytestmark = pytest.mark.anyio

PRODUCTS, MODULES = "QueryProductList", "ListOTAModuleByProduct"


async def test_pages_contain_all_products_and_the_next_one_is_empty() -> None:
    world = World(300, products=7, missing=0.2)
    async with Simulator(world) as platform:
        pages = [(await call(platform, PRODUCTS, CurrentPage=page, PageSize=3))["data"] for page in (1, 2, 3, 4)]
    entries = [entry for page in pages for entry in page["list"]["productInfo"]]
    assert [len(page["list"]["productInfo"]) for page in pages] == [3, 3, 1, 0]
    assert [entry["productKey"] for entry in entries] == list(world.product_keys)
    assert [page["currentPage"] for page in pages] == [1, 2, 3, 4]
    assert {(page["pageCount"], page["pageSize"], page["total"]) for page in pages} == {(3, 3, 7)}
    for entry in entries:
        assert entry["deviceCount"] == sum(each.exists for each in world if each.product_key == entry["productKey"])


async def test_an_entry_has_the_fields_of_the_record(platform: Simulator) -> None:
    answer = await call(platform, PRODUCTS, CurrentPage=1, PageSize=200)
    entries = answer["data"]["list"]["productInfo"]
    assert all(
        set(entry) == {
            "productKey", "productName", "deviceCount", "nodeType", "dataFormat", "gmtCreate", "description", "authType",
        }
        for entry in entries
    )  # fmt: skip
    assert len({entry["productName"] for entry in entries}) == 4
    assert answer["code"] == ""


async def test_device_counts_include_churn() -> None:
    async with Simulator(World(100, missing=0), churn=Churn(300, 100)) as platform:
        await call(platform, PRODUCTS, CurrentPage=1, PageSize=200)
        await anyio.sleep(0.1)
        page = (await call(platform, PRODUCTS, CurrentPage=1, PageSize=200))["data"]["list"]["productInfo"]
        assert sum(entry["deviceCount"] for entry in page) > 100
        newer = platform.registry_for()
        assert sum(map(newer.count, range(4))) == 100 + newer.registered - len(newer.removed)


@pytest.mark.parametrize(
    ("page", "size"), [("0", "10"), ("-1", "10"), ("x", "10"), ("", "10"), ("1", "0"), ("1", "201"), ("1", "")]
)
async def test_page_parameters_out_of_range_are_rejected(platform: Simulator, page: str, size: str) -> None:
    sent = {"CurrentPage": page, "PageSize": size}
    assert await error_code(platform, PRODUCTS, sent) == "iot.common.InvalidPageParams"
    given = {name: value for name, value in sent.items() if value}
    assert await error_code(platform, PRODUCTS, given) == "iot.common.InvalidPageParams"


async def test_a_product_defines_the_modules_of_the_catalog(platform: Simulator, world: World) -> None:
    for product in world.products:
        entries = (await call(platform, MODULES, ProductKey=product.product_key))["data"]
        names = [entry["moduleName"] for entry in entries]
        reported = {
            module.module_name for each in world if each.product_key == product.product_key for module in each.modules
        }
        assert names[0] == "default"
        assert set(names) == {name for name in reported if not name.startswith("plugin-")}
        assert all(
            set(entry) == {"productKey", "moduleName", "aliasName", "desc", "gmtCreate", "gmtModified"}
            and entry["productKey"] == product.product_key
            for entry in entries
        )


@pytest.mark.parametrize(("product_key", "code"), PRODUCT_ERRORS)
async def test_modules_of_an_unknown_product_are_rejected(platform: Simulator, product_key: str, code: str) -> None:
    assert await error_code(platform, MODULES, {"ProductKey": product_key}) == code


async def test_alibabas_dialect_is_in_pascal_case(world: World) -> None:
    async with Simulator(world, dialect="alibaba") as platform:
        products = await call(platform, PRODUCTS, CurrentPage=1, PageSize=1)
        modules = await call(platform, MODULES, ProductKey=world.product_keys[0])
    assert products["Data"]["List"]["ProductInfo"][0]["ProductKey"] == world.product_keys[0]
    assert modules["Data"][0]["ModuleName"] == "default"
