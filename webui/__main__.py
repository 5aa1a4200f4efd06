"""`python -m webui`: see `webui.cli`."""

from webui.cli import leave, main

if __name__ == "__main__":
    leave(main())
