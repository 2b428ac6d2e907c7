"""Command `params`: check a params.yaml, and the base and the corpus that it names."""

from argparse import Namespace

from infini.params import check_params


def run_params(arguments: Namespace) -> None:
    """Print the versions of a valid file, or --targets; an invalid one raises InputError."""
    params = check_params(arguments.file)
    if arguments.targets:
        print(*params.targets())
        return
    print(f"{arguments.file}: valid; versions: {', '.join(params.versions) or 'none'}")
