"""DuckDB, result tables in every output format, and durable files."""
