"""A process that publishes the runs of a directory to the destinations in a JSON file, until it is killed."""

import os
import sys
from pathlib import Path

import msgspec

from auditor.config.settings import PublishSettings
from auditor.publish import destinations, parquet_dataset  # noqa: F401  a kill is to hit the publishing, not an import
from auditor.publish.publisher import publish_missing

tables = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=tuple[PublishSettings, ...])
sys.stdout.write("ready\n")
sys.stdout.flush()
for table in tables:
    publication = publish_missing(Path(sys.argv[1]), table)
    assert publication.error is None, publication.sentence
os._exit(0)  # as a command ends: one of the threads of obstore can abort the process while Python ends
