"""Scoring jobs planned without the devices: compiled for a topology, analysed, priced."""
