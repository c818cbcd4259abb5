"""Installs sitq with its extra for PostgreSQL."""

from sitq_install import install

install("postgres")
