"""`vlmface data init`: look at a user's data and write the YAML file of a data set.

`tables` looks at a table: `names` and `columns` find out what its columns are, `tools` whether a
program wrote them, `pictures` where the pictures are, `labels` which label space the words are, and
`divide` how rows are split. `label_folders` looks at folders, `known_files` at the files of FER2013
and FER+. `writing` makes the file of all that, and `command` is the command.
"""
