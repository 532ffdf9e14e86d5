"""Run folders are paths, or URIs of an object store."""


def is_uri(run_dir: str) -> bool:
    """Whether a run folder lies in an object store."""
    return "://" in run_dir
