"""Placement engines: first-fit decoding of an order, and the exact search."""
