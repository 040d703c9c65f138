"""Tests of the simulated platform: real sockets, the vendor's SDK, properties."""
