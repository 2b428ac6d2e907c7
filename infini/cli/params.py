"""`params`: a params.yaml checked whole, and against the base and the text that it names."""

from argparse import Namespace

from infini import params


def run(words: Namespace) -> None:
    """Say that words.file is valid; InputError, one line with the key, where it is not."""
    found = params.check_params(words.file)
    print(f"{words.file}: valid; versions: {', '.join(found.versions) or 'none'}")
