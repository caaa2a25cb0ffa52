"""``python evaluate.py report=…``: many evaluations in one table, with what is known of its numbers' certainty."""
