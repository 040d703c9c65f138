"""Sealed runs in other places: files, object storage and databases, all with the tables of ``publish.tables``."""
