"""`vlmface data init`: look at a user's data and write the YAML file of a data set.

`opening` opens the data. `tables` looks at a table: `layout` finds out what its columns are, with
`names` and `columns`, `raters` and `label_columns` (labels in several columns), `people` (in names
of files) and `tools` (whether a program wrote them). `locating` and `pictures` find the pictures,
`labels` which label space the words are, and `divide` how rows are split. `label_folders` looks at
folders, `known_files` at the files of FER2013 and FER+. `lines` prints what was found, `writing`
makes the file of all that, and `command` is the command.
"""
