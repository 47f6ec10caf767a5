"""What benchmarks are made of: processes to measure, a path between them, the report."""
