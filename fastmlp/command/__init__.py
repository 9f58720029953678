"""The commands that train, predict and describe, for schedulers and for whoever writes no Python.

`tables` reads the rows of a file, `settings` reads and checks a file of settings, `training` and
`predicting` do the work.
"""
