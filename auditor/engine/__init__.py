"""The worker pool, and what each account needs while it is queried."""
