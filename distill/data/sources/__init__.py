"""Where labelled images come from: one module for each kind of source.

folders        train/, val_on_train/ and val/ with class folders; or class folders alone
manifest_file  CSV, TSV, JSON lines or Parquet with the columns path, label and, maybe, split
hugging_face   a dataset on disk, or by its name on the hub
webdataset     tar files of images and labels
coco, yolo     photos with boxes, which are cut out (`boxes`)

`find` tells which one a path is. Each gives images that can be read in any order: files, members of
tar files, rows of Arrow files (`arrow_images`), or what is written to the cache once
(`image_store`).
"""
