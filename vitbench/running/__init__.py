"""Instruments that run a model and time it: passes, clocks, devices, processes, and what the machine is."""
