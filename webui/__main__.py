"""`python -m webui`: see `webui.cli`."""

from webui.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
