"""What a fleet runs: folders built from outcomes, sealed, read and proven."""
