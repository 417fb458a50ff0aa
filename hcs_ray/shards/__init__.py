"""WebDataset tars of whole fields, their index and manifest, reading them back, and repairing them.

One sample of a tar is ``<key>.blosc2`` (or ``.jxl``), all channels of a field as one lossless member, and
``<key>.json``, its shape, channels and metadata. ``index.parquet`` says where each image member lies.
docs/shards.md and docs/codecs.md describe the files.
"""
