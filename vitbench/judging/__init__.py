"""Instruments that compare: stored results, two sides in one run, and the words for what is found."""
