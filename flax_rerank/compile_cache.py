"""Compiled programs that outlive the process."""

import jax


def use_compile_cache(folder: str) -> None:
    """Keep every compiled program in `folder` (a path, or gs:// on Google Cloud) and take it from there next time.

    A program is found again by the same versions of jax and flax_rerank, for the same model shape, step shapes and
    kind of device.
    """
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    reset_cache()  # else a process that has already compiled would keep its old cache
