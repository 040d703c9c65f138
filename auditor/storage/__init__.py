"""DuckDB and durable files."""
