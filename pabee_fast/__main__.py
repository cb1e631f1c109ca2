"""`python -m pabee_fast` is `pabee-fast`."""

from pabee_fast.cli import main

main()
