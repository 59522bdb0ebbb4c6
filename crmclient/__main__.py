"""``python -m crmclient`` is ``crmclient``."""

from crmclient.cli import main

main()
