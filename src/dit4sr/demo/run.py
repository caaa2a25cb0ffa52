"""The verb ``demo``: a page on this machine where photos are restored."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dit4sr.errors import UserError
from dit4sr.files import check_folder
from dit4sr.prompts.captioners import CAPTIONERS
from dit4sr.restoration.checks import check_network, check_paths
from dit4sr.trained_runs import check_any_network
from dit4sr.values import number, whole_number

UPLOAD_LIMIT = "200mb"


def run(config: DictConfig, explicit: Collection[str] = ()) -> int:
    """Serve the page until interrupted.

    Args:
        config: configs/demo.yaml, composed.
        explicit: names of the settings that the command line set.

    Raises:
        UserError: for a config that the user can mend, Gradio that is not installed, or a port that is taken.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    check(plain, explicit)

    # Being terminated is Ctrl-C, so that nothing of the visitors' stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dit4sr-demo-")))
        folder = temporary / "results" if plain["out"] is None else Path(str(plain["out"])).expanduser()
        stay_local(temporary / "uploads")

        # Late: these import torch and Gradio, which take seconds.
        from dit4sr.demo.page import STYLE, build_page, theme
        from dit4sr.demo.studio import Studio

        studio = Studio.from_config(plain, explicit, folder)
        page = build_page(studio, examples_in(plain["examples"]))
        stack.callback(page.close, verbose=False)
        page.launch(
            server_name=plain["host"],
            server_port=plain["port"],
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=UPLOAD_LIMIT,
            allowed_paths=[str(folder)],
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            theme=theme(),
            css=STYLE,
        )
        print(f"restoring with {studio.described}")
        print(f"the page is at http://{plain['host']}:{plain['port']} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return 0


def check(config: dict[str, Any], explicit: Collection[str]) -> None:
    """Refuse what cannot be served, before anything heavy is imported.

    Raises:
        UserError: naming the setting, or what to install.
    """
    number(config, "upscale", 1)
    number(config, "max_megapixels", 0)
    whole_number(config, "seed")
    check_network(config)
    if config["captioner"]["name"] not in CAPTIONERS:
        raise UserError(f"captioner.name={config['captioner']['name']!r}: choose one of {', '.join(CAPTIONERS)}")
    if config["out"] is not None:
        check_folder(Path(str(config["out"])).expanduser())
    port = whole_number(config, "port", 1)
    if port > 65535:
        raise UserError(f"port={port}: ports end at 65535")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the web demo needs Gradio: pip install 'dit4sr[demo]'")
    try:
        family = socket.AF_INET6 if ":" in str(config["host"]) else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((str(config["host"]), port))
    except OSError as error:
        raise UserError(
            f"host={config['host']} port={port} cannot be served ({error.strerror}): give another port=…"
        ) from error
    check_paths(config)
    check_any_network(config, explicit)


def stay_local(uploads: Path) -> None:
    """Keep Gradio from telling anybody that it runs, or asking whether it is up to date; and its files together."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it asks its own server whether that is up
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def examples_in(folder: str | None, most: int = 5) -> list[Path]:
    """The first photos of a folder; none where there is no such folder."""
    path = Path(str(folder)).expanduser()
    return sorted(path.glob("*.png"))[:most] if folder and path.is_dir() else []
