"""Read one run: version counts, devices that match a filter, SQL, warnings, and the order of versions."""
