"""`python -m scaling.cli`: the armscale command where no script is installed."""

from scaling.cli import main

main()
