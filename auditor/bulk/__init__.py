"""Reading in bulk: the platform's search index, which returns the versions of many devices in one request."""
