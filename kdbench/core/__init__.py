"""What all other packages build on: errors, seeds, files, and the dataclasses that pass between packages. No torch.

Start with `trial`: a trial is one student to train and the unit of results. `data` and `recipe` describe its inputs,
`record` its result, `events` what is reported while it trains, and `catalog` what is known of methods and models.
"""
