"""Studies: what several runs say together (ablation, demo)."""
