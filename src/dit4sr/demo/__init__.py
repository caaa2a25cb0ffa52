"""The web demo: ``python -m dit4sr.demo [ckpt=…] [port=…]``. Needs the extra ``demo`` (Gradio)."""
