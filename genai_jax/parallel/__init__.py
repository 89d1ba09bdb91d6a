"""Devices: host start-up, the mesh, and the table of sharding rules."""
