"""`python -m vlmface ...` and `accelerate launch -m vlmface train ...`: the `vlmface` command."""

from vlmface.cli import command

if __name__ == "__main__":
    command()
