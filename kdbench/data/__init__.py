"""From images on disk to batches on the device.

`catalog` names the data sets (and imports nothing heavy), `sources` reads them, `batches` serves them.
"""
