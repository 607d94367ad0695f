"""Instruments that count a pass without running it: operators, and the memory that its tensors hold."""
