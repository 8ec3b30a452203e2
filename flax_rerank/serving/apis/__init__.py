"""The APIs that the server speaks: what each asks, answers, and says of errors."""
