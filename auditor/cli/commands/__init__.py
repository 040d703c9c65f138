"""The commands, each a function: flags in, one library call, an exit code out. Each loads only what it needs."""
