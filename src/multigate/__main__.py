"""``python -m multigate``."""

from multigate.cli import main

main()
