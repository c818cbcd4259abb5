"""Installs sitq for its adapter: from `$SITQ_SOURCE`, or from an index: `python sitq_install.py VENV`."""

import os
import subprocess
import sys

source = os.environ.get("SITQ_SOURCE", "sitq-queue")
subprocess.run([f"{sys.argv[1]}/bin/python", "-m", "pip", "install", "-q", source, "uvloop"], check=True)
