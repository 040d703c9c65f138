"""Which devices: fleet files of every kind, validated into one snapshot that is read lazily."""
