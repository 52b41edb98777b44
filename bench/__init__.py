"""Measurements: one file per question, each prints a table for people and ends with one JSON document."""
