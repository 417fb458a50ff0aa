"""WebDataset tars of whole fields, their index and manifest, and reading them back.

One sample of a tar is ``<key>.blosc2``, all channels of a field as one lossless uint16 member, and
``<key>.json``, its shape, channels and metadata. ``index.parquet`` says where each image member lies.
"""
