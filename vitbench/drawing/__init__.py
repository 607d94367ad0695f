"""Instruments that charts, pictures and pages share."""
