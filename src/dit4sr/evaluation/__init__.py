"""Benchmarks, metrics, tables and pictures."""
