"""One of two processes that run some jobs, one after the other: `two_processes.py COORDINATOR NUMBER MODEL JOBS`."""

import json
import logging
import sys

from flax_rerank.jobs import JobOptions, score_files

if __name__ == "__main__":
    logging.basicConfig(format="flax-rerank: %(message)s")
    coordinator, number, model, jobs = sys.argv[1:]
    place = {"coordinator": coordinator, "num_processes": 2, "process_id": int(number)}
    for options, settings in json.loads(jobs):
        options["input"] = options["input"].format(process=number)
        score_files(model, JobOptions(**options, **place), **settings)
