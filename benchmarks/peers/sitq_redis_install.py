"""Installs sitq with its extra for Redis."""

from sitq_install import install

install("redis")
