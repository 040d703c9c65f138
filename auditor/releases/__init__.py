"""Released firmware: which there is for the products of a run, its update jobs, and their tasks."""
