"""The operation QueryDeviceBySQL of the simulated platform: the language of its queries, and the index that answers."""
