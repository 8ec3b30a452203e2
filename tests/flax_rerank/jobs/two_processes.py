"""One of two processes that run some jobs, one after the other: `two_processes.py COORDINATOR NUMBER JOBS`."""

import json
import logging
import sys

from flax_rerank.jobs import JobOptions, score_files

if __name__ == "__main__":
    logging.basicConfig(format="flax-rerank: %(message)s")
    coordinator, number, jobs = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    for job in jobs:
        place = {"coordinator": coordinator, "num_processes": 2, "process_id": number}
        options = {
            name: value.format(process=number) if isinstance(value, str) else value for name, value in job.items()
        }
        settings = {name: options.pop(name) for name in ("mesh",) if name in options}
        score_files(options.pop("model"), JobOptions(**options, **place), **settings)
