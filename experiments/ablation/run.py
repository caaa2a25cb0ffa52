"""The ablation study's one command: python experiments/ablation/run.py [setting=value …].

Trains and evaluates the six models with one budget, seed and data stream by one Hydra
multirun, and ends in one table and one picture. Every setting of train.py can be given, for
example training.steps=2000, backbone=small, seed=1 or out=outputs/my_ablation.
"""

import sys

from dit4sr.cli import main

MODELS = ("dit4sr", "variant_a", "variant_b", "variant_c", "variant_d", "sd3_controlnet")

if __name__ == "__main__":
    settings = sys.argv[1:]
    if not any(setting.startswith("model=") for setting in settings):
        settings = [f"model={','.join(MODELS)}", *settings]
    sys.argv[1:] = ["--multirun", "experiment=ablation", *settings]
    sys.exit(main("train"))
