"""`python -m vlmface.cli`: the `vlmface` command."""

from vlmface.cli import command

if __name__ == "__main__":
    command()
