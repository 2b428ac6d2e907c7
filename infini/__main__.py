"""Entry point of `python -m infini`."""

from infini.cli.main import main

if __name__ == "__main__":
    main()
