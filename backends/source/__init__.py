"""Emission of a program as Python source."""
