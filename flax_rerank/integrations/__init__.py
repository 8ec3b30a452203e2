"""Rerankers where other libraries expect theirs: one module for each library, which is imported with it alone."""
