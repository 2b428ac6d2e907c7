"""`params`: a params.yaml checked whole, and against the base and the text that it names."""

from argparse import Namespace

from infini import params


def run(words: Namespace) -> None:
    """Print that words.file is valid, or with --targets the stages of a default run.

    Raises:
        InputError: one line with the key that is invalid.
    """
    found = params.check_params(words.file)
    if words.targets:
        print(*found.targets())
        return
    print(f"{words.file}: valid; versions: {', '.join(found.versions) or 'none'}")
