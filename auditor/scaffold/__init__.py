"""The files of a new audit: settings, rules, and what starts it each night."""
