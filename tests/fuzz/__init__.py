"""Whatever the bytes: each reader gives what it promises or one of its documented errors, and nothing else."""
