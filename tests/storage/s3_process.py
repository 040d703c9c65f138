"""A simulated S3 on a port of its own, until its standard input ends. The Python of ``.s3/`` runs it."""

import sys

import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
client = boto3.client(
    "s3",
    endpoint_url=f"http://{host}:{port}",
    region_name="us-east-1",
    aws_access_key_id="simulated",
    aws_secret_access_key="simulated",
)
client.create_bucket(Bucket="lake")
sys.stdout.write(f"{port}\n")
sys.stdout.flush()
sys.stdin.read()
