"""Benchmarks, which run for long: `python -m benchmarks NAME …`, or all of them without a name.

Speed:

- speed.busy_machine: images per second in training beside two busy loops
- speed.cli_start: CPU time to start a command
- speed.cpu_kernels: what each replacement of a torch function saves in training
- speed.enrichment_peers: labels per second beside curator and distilabel
- speed.enrichment_rate: labels per second of an enrichment run, and its memory
- speed.export_formats: a student in each format of an export beside PyTorch
- speed.few_shot: finetuning of the projection alone beside the whole network
- speed.gpu: what a GPU is used for, beside plain loops and the networks alone
- speed.image_captions: time and memory to caption a folder of images
- speed.load: requests of many clients on one database, and their latencies
- speed.metrics_growth: time and memory of the metrics as the number of images grows
- speed.pages: server time and size of each web page on a large database
- speed.predict: time of distill predict for one photo from a cold start
- speed.release_rate: reads of a release per second beside a minimal route
- speed.serve: photos per second and memory of distill serve beside ONNX Runtime alone
- speed.streaming: memory and rate in training from pixels that are streamed
- speed.teacher_speed: images and texts per second of the teacher beside plain open_clip
- speed.training_speed: images per second in training beside a plain PyTorch loop

Quality:

- quality.ablation: what each loss and the descriptions add, on real photos
- quality.clutter: several charms on one image, from one camera and from two
- quality.exported_student: accuracy and speed of a student in every format of an export
- quality.look_alikes: scores for unknown photos, with and without look-alikes
- quality.parity: an exported classifier beside PyTorch, photo by photo
- quality.real_world: the whole pipeline on real photos with recorded descriptions
- quality.time_to_quality: time until a student is good enough with AdamW, SGD and Muon

Faults:

- faults.classifier_fuzz: attacks on distill serve
- faults.enrichment_faults: a run whose calls fail and whose service is killed again and again
- faults.fuzz: requests that Schemathesis generates from the OpenAPI description
- faults.service_faults: kills, a full disk, clock jumps and a cut network under service and workers
"""

import os

from benchmarks._photos import SHARED

# The teacher of the photos lies beside them, and nowhere else: the hub's package reads this when it
# is imported.
os.environ["HF_HOME"] = str(SHARED / "hf-home")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
