"""`python -m aegis_control` is `aegis-control`."""

from aegis_control.cli import main

main()
