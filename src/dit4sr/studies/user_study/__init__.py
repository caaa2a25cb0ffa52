"""The user study: volunteers compare two restorations of one LR image (DiT4SR's supplement, section 5, figure 4).

Serving it needs the extra ``study`` (FastAPI, uvicorn, Jinja2, python-multipart).
"""

from dit4sr.studies.user_study.command import main

__all__ = ["main"]
