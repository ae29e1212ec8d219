"""The measurements of README.md, part by part beside their peers: `.venv/bin/python tests/benchmarks`."""
