"""Run folders: written, sealed, verified, removed."""
