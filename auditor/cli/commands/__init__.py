"""Commands, one module per task. Each function is a command; its docstring is its help."""
