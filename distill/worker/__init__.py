"""The worker: takes training jobs from the service over HTTP, one after the other.

client.py    HTTP requests to the service, with retries
upload.py    sending a result file in chunks
outbox.py    sending the events that a training writes into a file
protocol.py  what a training and the worker tell each other: event lines and exit statuses
attempt.py   one job under one lease: the training process, its events and its results
main.py      the loop that claims jobs
offers.py    telling the service what this worker has, from
             data_folders.py (data sets below its data roots) and
             cached_models.py (teachers and students in the Hugging Face cache)

Notable:
- Training runs as a child process in a process group of its own, so that a cancel is a kill.
- A thread renews the lease. When the service says that the lease is lost, the child is killed and
  nothing more is sent.
- The training writes its events into a file of the work folder, and the worker sends them from
  there in order, each numbered by its line, so that an event that is sent twice is stored once.
  While the service is unreachable they wait; if the worker was killed, the next attempt in that
  folder sends them.
- A training whose worker was killed writes its checkpoint and ends.
- The work folder is named after the job, and another attempt resumes from the checkpoint in it. A
  lock, which the child inherits, keeps two trainings out of one folder even when a worker was
  killed and its child still runs.
- What the service refuses about one job ends the work on that job; the worker takes the next one.
"""
