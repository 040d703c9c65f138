"""Run folders: their files, locks, journals and manifest; sealing, verification, recovery and deletion."""
