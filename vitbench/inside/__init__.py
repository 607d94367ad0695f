"""Instruments that look inside a model as it runs: its attention, its layers, and where their tokens lie."""
