"""Instruments that make batches of photographs and videos."""
