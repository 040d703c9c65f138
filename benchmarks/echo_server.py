"""The fastest possible platform in Python: reports two modules for every device, and checks no signature.

So benchmarks measure the client. python benchmarks/echo_server.py [MODULES] prints its port.
"""

import asyncio
import sys
from typing import cast
from urllib.parse import parse_qs

import httptools
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
BODY = (
    b'{"RequestId":"47f85a55-2ffb-40d4-9d0a-efd41fac7380","Success":true,"Code":"","Total":%(modules)d,"PageSize":200,'
    b'"PageCount":1,"CurrentPage":1,"Data":{"SimpleOTAModuleInfo":[%(entries)s]}}'
)
ENTRY = (
    b'{"ProductKey":"%(key)s","DeviceName":"%(name)s","IotId":"iot-%(name)s","ModuleName":"%(module)s",'
    b'"ModuleVersion":"1.4.%(minor)s"}'
)
"""Alibaba's spelling, because the vendor's newer SDK accepts no other."""

MODULES = (b"default", b"ble", b"mcu", b"wifi", b"zigbee", b"nfc")[: int(sys.argv[1]) if len(sys.argv) > 1 else 2]


class Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.body = b"", b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        parameters = parse_qs(self.url.partition(b"?")[2] + b"&" + self.body)
        key, name = parameters[b"ProductKey"][0], parameters[b"DeviceName"][0]
        entries = [ENTRY % {b"key": key, b"name": name, b"module": module, b"minor": name[-1:]} for module in MODULES]
        answer = BODY % {b"modules": len(MODULES), b"entries": b",".join(entries)}
        self.transport.write(HEAD % len(answer) + answer)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
