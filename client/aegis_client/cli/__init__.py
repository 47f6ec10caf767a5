"""`espctl`, the command line over the library. Nothing heavy is imported before it is needed."""


def main() -> int:
    """The console script."""
    from aegis_client.cli.app import main as run

    return run()
