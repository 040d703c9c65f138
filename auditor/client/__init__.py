"""Client of the platform's HTTP API: signs requests, sends them, and parses responses into results or errors."""
