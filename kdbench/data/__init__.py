"""From image files to batches on the device.

`registry` names the data sets and imports nothing heavy, `sources` reads them, `identity` recognizes published ones,
`subset` selects images, and `resident` serves batches. `views` holds the augmentations that methods may require.
"""
