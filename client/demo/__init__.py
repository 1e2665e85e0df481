"""The main job on one machine: four hospitals, one validator, one task, an audit.

`heart` reads the data, `training` is what a hospital's own code would be, `hospital` is the
program of one participant, `story` runs the processes and `report` says what happened.
"""
