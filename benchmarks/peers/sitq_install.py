"""Installs sitq for its adapter: from `$SITQ_SOURCE`, or from an index: `python sitq_install.py VENV`."""

import os
import subprocess
import sys


def install(*extras: str) -> None:
    """Install sitq with extras into the environment named by the first argument."""
    source = os.environ.get("SITQ_SOURCE", "sitq-queue")
    wanted = f"{source}[{','.join(extras)}]" if extras else source
    subprocess.run([f"{sys.argv[1]}/bin/python", "-m", "pip", "install", "-q", wanted, "uvloop"], check=True)


if __name__ == "__main__":
    install()
